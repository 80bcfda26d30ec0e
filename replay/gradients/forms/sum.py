"""Gradients of a parameter that several operations use: the sum of what each of them gives."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from replay.gradients.forms.form import Form


@dataclass(frozen=True)
class Sum(Form):
    """Forms of different kinds, added up.

    >>> import torch; from replay.gradients.forms.dense import Dense
    >>> g = Sum((Dense(torch.ones(2, 1, 3)), Dense(torch.arange(6.0).view(2, 1, 3))))
    >>> torch.equal(g.inner(g), (g.dense(slice(0, 1)) @ g.dense(slice(0, 1)).T).double())
    True

    Attributes:
        forms: Two or more.
    """

    forms: tuple[Form, ...]

    @property
    def count(self) -> int:
        """N."""
        return self.forms[0].count

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C)``."""
        return self.forms[0].shape

    @property
    def tensors(self) -> list[Tensor]:
        """Those of all terms."""
        return [tensor for form in self.forms for tensor in form.tensors]

    @property
    def terms(self) -> tuple[Form, ...]:
        """What is added up."""
        return self.forms

    def select(self, examples: Tensor | slice) -> Sum:
        """Return some examples' gradients."""
        return Sum(tuple(form.select(examples) for form in self.forms))

    def dense(self, rows: slice, role: str | None = None) -> Tensor:
        """Return some rows of each gradient."""
        return reduce(add, (form.dense(rows) for form in self.forms))

    def summed(self) -> Tensor:
        """Return the sum of all gradients."""
        return reduce(add, (form.summed() for form in self.forms))

    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction."""
        return reduce(add, (form.project(direction) for form in self.forms))

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        """Return products with a vector from either side."""
        return reduce(add, (form.sketch(left, right) for form in self.forms))

    def kept(self, overwritten: frozenset[int]) -> Sum:
        """Return the same with tensors of its own where needed."""
        return Sum(tuple(form.kept(overwritten) for form in self.forms))


def added(forms: Sequence[Form]) -> Form:
    """Return the sum of forms; those that are alike, as of calls of one layer, become one."""
    groups: dict[Hashable, list[Form]] = {}
    for form in forms:
        alike = id(form) if form.alike is None else form.alike
        groups.setdefault((type(form), alike), []).append(form)
    found = [one.joined(others) if others else one for one, *others in groups.values()]
    return found[0] if len(found) == 1 else Sum(tuple(found))
