r"""What per-example gradients of one parameter are kept as, and how any two of them multiply.

A parameter is a matrix here, ``(R, C)``: its first dimension and all others. A ``Form`` stores what
a kind of layer gives. It says in its own file which products cost less than with gradients that are
written out; the dense way, which is right for all of them, is here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from replay.gradients.forms.cuts import add_product, blocks_of_rows
from replay.vectors.blocks import zeros

T = TypeVar("T", bound="Form")


@dataclass(frozen=True)
class Form(ABC):
    """Gradients ``g_i`` of n examples of one parameter ``(R, C)``."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of examples, n."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(R, C)``."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What it stores."""

    @abstractmethod
    def select(self, examples: Tensor | slice) -> Form:
        """Return some examples' gradients."""

    @abstractmethod
    def dense(self, rows: slice, role: str | None = None) -> Tensor:
        """Return some rows of each gradient, ``(n, r C)``, maybe a view.

        Args:
            rows: Which rows.
            role: Lets the result be in a workspace, until the next call for that role.
        """

    @abstractmethod
    def summed(self) -> Tensor:
        """Return the sum of all gradients, ``(R, C)``."""

    @abstractmethod
    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a ``(R, C)`` direction, float64 ``(n,)``."""

    def projections(self, directions: Tensor) -> Tensor:
        """Return inner products with k directions ``(k, R, C)``, float64 ``(k, n)``."""
        return torch.stack([self.project(direction) for direction in directions])

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``leftᵀ g_i right``, ``(n,)``."""
        return self.project(torch.outer(left, right))

    @property
    def terms(self) -> tuple[Form, ...]:
        """The forms that this one is the sum of: itself, if it is none."""
        return (self,)

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """``δ``, ``(n, R)``, and ``a``, ``(n, C)``, if each gradient is one ``δ aᵀ``.

        Products with few vectors then cost as much a vector as with many.
        """
        return None

    @property
    def alike(self) -> Hashable:
        """Forms of one class and parameter for which this is equal can be joined; None cannot."""
        return None

    def joined(self: T, others: Sequence[T]) -> T:
        """Return the sum of this and others that are alike, as one form."""
        raise NotImplementedError

    def times(self, other: Form, role: str | None = None) -> Tensor | None:
        """Return ``⟨g_i, h_j⟩``, float64 ``(n, m)``; None if the dense way is as good.

        Args:
            other: Gradients ``h``.
            role: Lets the result be in a workspace, until the next call for that role.
        """
        return None

    def inner(self, other: Form, role: str | None = None) -> Tensor:
        """Return ``⟨g_i, h_j⟩`` for every pair, as either form knows how; see ``times``."""
        found = self.times(other, role)
        if found is None:
            turned = other.times(self, role)
            found = None if turned is None else turned.T
        return _dense_inner(self, other, role) if found is None else found

    def with_vectors(self, vectors: Tensor) -> Tensor:
        """Return inner products with vectors ``(m, R C)``, float64 ``(n, m)``."""
        result = vectors.new_zeros(self.count, len(vectors), dtype=torch.float64)
        each = self.shape[1]
        for rows in blocks_of_rows(self.shape, self.count):
            part = vectors[:, rows.start * each : rows.stop * each]
            result += self.dense(rows, "left") @ part.T
        return result

    def squared_norms(self, scale: float = 1.0) -> Tensor:
        """Return ``scale ‖g_i‖²``, float64 ``(n,)``."""
        result = self._zeros(self.count)
        for rows in blocks_of_rows(self.shape, self.count):
            result += self.dense(rows, "left").double().square().sum(1) * scale
        return result

    def weighted_squares(self, weight: Tensor) -> Tensor:
        """Return ``Σ_k weight_k g_ik²``, float64 ``(n,)``; ``weight`` is float64 ``(R C,)``."""
        result, each = self._zeros(self.count), self.shape[1]
        for rows in blocks_of_rows(self.shape, self.count):
            squares = self.dense(rows, "left").double().square()
            result += squares @ weight[rows.start * each : rows.stop * each]
        return result

    def kept(self, overwritten: frozenset[int]) -> Form:
        """Return the same with tensors of its own where they lie in storages that change later.

        A tensor that was written in place may lie in a workspace of the model's.
        """
        shared: dict[str, Any] = {
            name: tensor.clone()
            for name, tensor in vars(self).items()
            if isinstance(tensor, Tensor)
            and (tensor._version or tensor.untyped_storage().data_ptr() in overwritten)
        }
        return replace(self, **shared) if shared else self

    def _zeros(self, *sizes: int, role: str | None = None) -> Tensor:
        return zeros(self.tensors[0], sizes, role)


def _dense_inner(left: Form, right: Form, role: str | None) -> Tensor:
    """Write both sides' gradients out, a block of the parameter's rows at a time."""
    shape = min(left.shape, right.shape)  # gradients computed anew are seen as one column
    result = left._zeros(left.count, right.count, role=role)
    for rows in blocks_of_rows(shape, left.count + right.count):
        mine = left.dense(_rows_of(left, rows, shape), "left")
        add_product(result, mine, right.dense(_rows_of(right, rows, shape), "right"))
    return result


def _rows_of(form: Form, rows: slice, shape: tuple[int, int]) -> slice:
    """Return the rows of a form that rows of a parameter of some shape are."""
    if form.shape == shape:
        return rows
    return slice(rows.start * shape[1], rows.stop * shape[1])


def is_finite(tensor: Tensor) -> bool:
    """Return whether all elements are numbers; a finite sum, which is cheaper to see, says so."""
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all elements of some tensors are numbers."""
    some = list(tensors)
    if some and all(one.layout == torch.strided for one in some):
        kinds = {(one.dtype, one.device) for one in some}
        if len(kinds) == 1 and math.isfinite(float(torch.stack(torch._foreach_norm(some)).sum())):
            return True
    return all(map(is_finite, some))


def for_products(tensor: Tensor) -> Tensor:
    """Half-precision gradients are multiplied in float32."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
