"""Gradients that a step left: another optimizer that steps on them takes part in that step."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from weakref import ReferenceType

from torch import Tensor
from torch.optim import Optimizer

from tracer.joined import Key
from tracer.watch.captures import ALL, Captures


class Moment:
    """Knows whether an optimizer is about to step on gradients that were there at the last step.

    Args:
        parts: The optimizers, by key; none if there is one.
        captures: Knows whether gradients came since.

    Attributes:
        clip_factor: What the gradients of all optimizers were multiplied with before that step.
        idle_closures: Whether the closures that steps are given compute no gradients.
    """

    def __init__(self, parts: Mapping[Key, Optimizer], captures: Captures) -> None:
        self._parts, self._captures = parts, captures
        self._left: dict[int, tuple[ReferenceType[Tensor], int]] = {}  # by ``id`` of parameters
        self._took: set[Key] = set()
        self.clip_factor, self.idle_closures = 1.0, False

    def step_ends(self, key: Key, clip_factor: float) -> None:
        """Note the gradients that the others have; before the step's forwards are forgotten."""
        self._took, self.clip_factor = {key}, clip_factor
        others = [one for k, one in self._parts.items() if key not in (ALL, k)]
        found = [p for one in others for p in _moved(one)]
        known = [(p, p.grad) for p in found if p.grad is not None]
        self._left = {id(p): (weakref.ref(grad), grad._version) for p, grad in known}

    def is_here(self, key: Key) -> bool:
        """Return whether a step of that optimizer would be one on gradients that were left."""
        if key in self._took or not self._left:
            return False
        own = [p for p in _moved(self._parts[key]) if p.grad is not None]
        quiet = self._captures.marks and not self._captures.turns()  # what was written is clipping
        return bool(own) and all(self._is_left(p, quiet) for p in own)

    def taken_part(self, key: Key) -> None:
        """Note that it stepped on them."""
        self._took.add(key)

    def _is_left(self, parameter: Tensor, quiet: bool) -> bool:
        gradient, version = self._left.get(id(parameter), (None, 0))
        same = gradient is not None and gradient() is parameter.grad
        return same and (quiet or version == getattr(parameter.grad, "_version", None))


def _moved(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
