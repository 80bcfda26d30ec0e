"""Gradients of several examples at one point, in the forms that the engine finds them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from replay.gradients.forms.dense import Dense
from replay.gradients.forms.form import Form

Blocks = Iterator[tuple[slice, dict[str, Tensor]]]  # which examples; by parameter (n, numel)


@dataclass(frozen=True)
class PerExample:
    """Gradients of ``c_i ℓ_i`` for n examples at one point.

    Attributes:
        losses: ``ℓ_i``, detached, ``(n,)``.
        forms: Those that are stored, by parameter.
        total: ``Σ c_i g_i`` by one plain backward, where it was asked for.
        complete: Parameters whose gradients were too large to store.
        blocks: Computes those anew, yields ``(rows, gradients)`` block by block; only while the
            model is at the same point.
    """

    losses: Tensor
    forms: dict[str, Form]
    total: dict[str, Tensor]
    complete: tuple[str, ...] = ()
    blocks: Callable[[], Blocks] = field(default=lambda: iter(()), repr=False)

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.losses.shape[0]

    @property
    def names(self) -> set[str]:
        """The parameters that the losses depend on."""
        return {*self.forms, *self.complete}

    def __contains__(self, name: str) -> bool:
        """Return whether the losses depend on a parameter; does not list all of them."""
        return name in self.forms or name in self.complete

    @property
    def nbytes(self) -> float:
        """Bytes of what is stored; infinite if some are computed anew."""
        if self.complete:
            return math.inf
        stored: dict[int, int] = {}  # inputs that layers share are there once
        for tensor in (t for form in self.forms.values() for t in form.tensors):
            storage = tensor.untyped_storage()
            stored[storage.data_ptr()] = min(storage.nbytes(), tensor.nbytes)
        return sum(stored.values())

    def rows(self, name: str, chosen: Tensor | slice, role: str | None = None) -> Tensor:
        """Return some examples' gradients of one stored parameter, ``(n, numel)``, maybe a view.

        Args:
            name: The parameter.
            chosen: Which examples.
            role: Lets the result be in a workspace, until the next call for that role.
        """
        form = self.forms[name]
        return form.select(chosen).dense(slice(0, form.shape[0]), role)

    def parts(self, chosen: Container[str]) -> Iterator[tuple[slice, Mapping[str, Form]]]:
        """Yield the stored forms of some parameters, then blocks of what is computed anew."""
        stored = {name: form for name, form in self.forms.items() if name in chosen}
        if stored:
            yield slice(0, self.count), stored
        if any(name in chosen for name in self.complete):
            for rows, found in self.blocks():
                yield rows, {n: Dense(g[:, :, None]) for n, g in found.items() if n in chosen}
