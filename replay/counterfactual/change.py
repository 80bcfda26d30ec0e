"""Which weights a counterfactual run changes: those of some examples, at every visit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tracer.records import ID, MicroBatch, Step


@dataclass(frozen=True)
class Change:
    """Examples, and what their weights are multiplied by.

    Attributes:
        scale: By ID; 0 removes an example. One whose factor is 1 is not changed.
        renormalise: Whether a mean divides by the examples left; else by those of the run.
    """

    scale: Mapping[ID, float]
    renormalise: bool = False

    @classmethod
    def removing(cls, ids: Sequence[ID], *, renormalise: bool = False) -> Change:
        """Return the change that removes some examples."""
        return cls(dict.fromkeys(ids, 0.0), renormalise)

    @cached_property
    def ids(self) -> set[ID]:
        """The examples whose weights are changed."""
        return {identity for identity, factor in self.scale.items() if factor != 1}

    def applied(self, step: Step) -> tuple[Step, tuple[MicroBatch, ...]]:
        """Return a step with changed weights, and its micro-batches that were changed."""
        ids = self.ids
        if ids.isdisjoint(step.batch_ids):
            return step, ()
        old = [micro.coefficients for micro in step.micro_batches]
        new = [c * self._factors(m) for c, m in zip(old, step.micro_batches, strict=True)]
        if self.renormalise:
            new = _renormalised(old, new)
        micros = tuple(
            replace(micro, coefficients=c) for micro, c in zip(step.micro_batches, new, strict=True)
        )
        changed = tuple(m for m, c in zip(micros, old, strict=True) if not m.coefficients.equal(c))
        return replace(step, micro_batches=micros), changed

    def _factors(self, micro: MicroBatch) -> Tensor:
        return torch.tensor([self.scale.get(i, 1.0) for i in micro.ids], dtype=torch.float64)


def _renormalised(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """Let weights add up to what they added up to: in each micro-batch, if each is a mean.

    Micro-batches whose weights add up differently share one denominator: the step's. A sum has no
    denominator.
    """
    if all(bool((c == 1).all()) for c in old):
        return new
    before, after = [float(c.sum()) for c in old], [float(c.sum()) for c in new]
    if max(before) - min(before) > 1e-9 * max(map(abs, before)):
        before, after = [sum(before)] * len(old), [sum(after)] * len(old)
    pairs = zip(new, before, after, strict=True)
    return [c * (whole / left) if left else c for c, whole, left in pairs]


def drawn(ids: Sequence[ID], count: int, fraction: float, seed: int) -> list[list[ID]]:
    """Return random subsets of examples.

    Args:
        ids: To draw from.
        count: How many subsets; a larger number begins with the same ones.
        fraction: The share of the examples that is in each, from 0 to 1.
        seed: Of the draw.
    """
    random, size = np.random.default_rng(seed), round(fraction * len(ids))
    places = (np.sort(random.permutation(len(ids))[:size]) for _ in range(count))
    return [[ids[k] for k in some] for some in places]


def first_visits(steps: Iterable[Step]) -> dict[ID, int]:
    """Return the first step that visits each example of a run."""
    found: dict[ID, int] = {}
    for step in steps:
        for identity in step.batch_ids:
            found.setdefault(identity, step.index)
    return found
