"""How a changed gradient is clipped: by the largest norm that the run allowed.

A log has the factor of each clipped step. The largest norm follows from it and from the norm before
clipping, which is found when the run is taken again. At steps that were not clipped it is that of
the others, if they agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tracer.records import Step
from tracer.watch.gradients import values_of

_KINDS = (2.0, math.inf)  # of norms that loops clip by
_ADDED = 1e-6  # by torch to a norm, before it divides
_ALIKE = 1e-4  # limits of one loop, of float32 norms


@dataclass
class Clips:
    """The factors by which a run clipped.

    Attributes:
        found: By step that was clipped, the factor and the norms before clipping.
    """

    found: dict[int, tuple[float, dict[float, float]]] = field(default_factory=dict)
    _known: tuple[float, float | None] | None = None

    def observe(self, step: Step, before: dict[float, float], after: dict[float, float]) -> None:
        """See a step of the run: its norms before and after clipping."""
        ratio = after[2.0] / before[2.0] if before[2.0] else 1.0
        factor = step.clip_factor if step.clip_factor != 1 else ratio
        if factor < 1 - _ADDED:
            self.found[step.index] = factor, before
            self._known = None

    def factor(self, step: Step, norms: dict[float, float]) -> float:
        """Return what the run's clipping multiplies a changed gradient by."""
        if self._known is None:
            self._known = self._limit()
        kind, common = self._known
        limit = common
        if step.index in self.found:
            limit = self._limit_at(step.index, kind)
        return 1.0 if limit is None else min(1.0, limit / (norms[kind] + _ADDED))

    @property
    def varies(self) -> bool:
        """Whether the limit was not always the same; that of steps not clipped is then unknown."""
        return self._limit()[1] is None

    def _limit(self) -> tuple[float, float | None]:
        """Return by which norm the run clipped, and to what if that was always the same."""
        if not self.found:
            return _KINDS[0], math.inf
        for kind in _KINDS:
            limits = [self._limit_at(t, kind) for t in self.found]
            if max(limits) - min(limits) <= _ALIKE * max(limits):
                return kind, limits[0]
        return _KINDS[0], None

    def _limit_at(self, t: int, kind: float) -> float:
        factor, norms = self.found[t]
        return factor * (norms[kind] + _ADDED)


def norms_of(gradients: Mapping[str, Tensor]) -> dict[float, float]:
    """Return the norms of some gradients, taken together."""
    if not gradients:
        return dict.fromkeys(_KINDS, 0.0)
    found, values = {}, [values_of(g) for g in gradients.values()]
    for kind in _KINDS:
        each = torch._foreach_norm(values, kind)
        found[kind] = float(torch.linalg.vector_norm(torch.stack([n.double() for n in each]), kind))
    return found
