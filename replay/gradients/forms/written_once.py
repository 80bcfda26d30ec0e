"""Gradients that are multiplied by several tables of vectors, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from replay.gradients.forms.cuts import LARGE
from replay.gradients.forms.outer_products import OuterProducts
from replay.gradients.forms.per_example import PerExample
from replay.vectors.workspace import room


@dataclass(frozen=True)
class WrittenOnce(OuterProducts):
    """Sums of outer products, whose rows are kept once they were written out.

    >>> import torch
    >>> g = WrittenOnce(torch.arange(12.0).view(1, 3, 4), torch.ones(1, 3, 2), 0, 2)
    >>> g.dense(slice(0, 2)) is g.dense(slice(0, 2))
    True
    """

    _written: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def dense(self, rows: slice, role: str | None = None) -> Tensor:
        """Return some rows of each gradient, the same tensor each time."""
        key = rows.start, rows.stop
        if key not in self._written:
            self._written[key] = super().dense(rows)
        return self._written[key]


def written_once(found: PerExample) -> PerExample:
    """Return the same, with as many parameters written out once as there is room for."""
    left, forms = room(LARGE), dict(found.forms)
    for name, form in found.forms.items():
        size = form.count * form.shape[0] * form.shape[1]
        if type(form) is OuterProducts and form.factors is None and size <= left:
            left -= size
            forms[name] = WrittenOnce(form.inputs, form.deltas, form.start, form.total)
    return replace(found, forms=forms)
