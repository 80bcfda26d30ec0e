"""A step that does not reproduce: what the run says of it, and what it would have been."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from replay.evaluate.binding import BoundModel
from replay.evaluate.state import States, Transition
from replay.evaluate.train_side import replay_gradient
from replay.losses import Loss
from replay.steps.mismatch import tolerance
from replay.task import Task
from tracer.records import Step

Vectors = dict[str, Tensor]
_BETTER = 3  # times closer than without it is a gradient that a cause explains
_VECTOR = 0.05  # of a gradient that a move tells, what may be rounding


@dataclass(frozen=True)
class Case:
    """A step whose gradient or whose move is not the logged one.

    Attributes:
        states: The run's states.
        task: Its task.
        bound: The copy of the model in which steps are replayed.
        now: The step, with the states before and after it.
        plain: Its gradient as replayed, penalty and all.
        applied: What the run applied, as its move tells, before clipping that was logged; empty
            where the update rule does not let it be told.
        rest: What is left of each parameter's move; empty where gradients differ already.
        anew: Returns what would be left of each move if the optimizer had had no state.
        same_dtype: Whether the replay computes in the run's dtype.
    """

    states: States
    task: Task
    bound: BoundModel
    now: Transition
    plain: Vectors
    applied: Vectors
    rest: Vectors
    anew: Callable[[], Vectors]
    same_dtype: bool
    device: torch.device
    observed: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        norms = {n: x for g in self.step.groups for n, x in zip(g.names, g.norms, strict=False)}
        moved, kappa = set(self.step.moved), self.step.clip_factor or 1.0
        known = {n: x / kappa for n, x in norms.items() if n in moved and math.isfinite(x)}
        object.__setattr__(self, "observed", known)

    @property
    def step(self) -> Step:
        """The step as logged."""
        return self.now.step

    @property
    def share(self) -> float:
        """How much of the gradient's norm may be rounding."""
        dtypes = [g.dtype for g in self.plain.values()] or [torch.float64]
        return 3 * max(tolerance(dtype, self.same_dtype, self.bound.coarsest) for dtype in dtypes)

    def replayed(self, task: Task | None = None, step: Step | None = None) -> Vectors:
        """Return the gradient of another task or step at this step's state; empty if it fails."""
        return self.at(self.now, task or self.task, step or self.step)

    def at(self, now: Transition, task: Task, step: Step) -> Vectors:
        """Return the gradient of a task and step at the beginning of any transition."""
        try:
            found = replay_gradient(
                task, step, now.before, self.bound, step.trained, device=self.device, budget=1 << 30
            )
        except Exception:  # what is tried need not work with this program
            return {}
        return added(found.gradient, found.penalty)

    def with_loss(self, change: Callable[[Loss], Loss]) -> Vectors:
        """Return the gradient under another loss function, made of the task's."""
        found = {name: change(loss) for name, loss in self.task.losses.items()}
        loss = found if isinstance(self.task.loss, Mapping) else found[""]
        return self.replayed(task=replace(self.task, loss=loss))

    def fits(self, gradient: Vectors) -> bool:
        """Return whether a gradient is the run's: its norms and, where it is known, itself."""
        gap = self.gap(norms(gradient)) if gradient else math.inf
        best = self.share if self.rest else min(self.share, self.gap(norms(self.plain)) / _BETTER)
        if not gap <= best:
            return False
        off = [
            (self.applied[n] - g.double().cpu()).norm()
            for n, g in gradient.items()
            if n in self.applied
        ]
        whole = math.hypot(*(float(u.norm()) for u in self.applied.values()))
        return math.hypot(*map(float, off)) <= _VECTOR * whole

    def gap(self, found: dict[str, float]) -> float:
        """Return the largest difference from a logged norm, of the whole norm."""
        whole = math.hypot(*self.observed.values()) or 1.0
        gaps = [abs(x - found.get(n, 0.0)) / whole for n, x in self.observed.items()]
        return max(gaps, default=math.inf)

    @property
    def decides(self) -> bool:
        """Whether agreement with one number left open proves anything."""
        return bool(self.applied) or len(self.differing()) > 1

    def differing(self) -> list[str]:
        """Return the parameters whose logged norm is not the replayed one, largest first."""
        found, whole = norms(self.plain), math.hypot(*self.observed.values()) or 1.0
        gaps = {n: abs(x - found.get(n, 0.0)) / whole for n, x in self.observed.items()}
        over = [n for n, gap in gaps.items() if not gap <= self.share]
        return sorted(over, key=lambda n: -gaps[n])


@dataclass(frozen=True)
class Cause:
    """What explains a step.

    Attributes:
        text: One clause, with what shows it.
        remedies: Two or three, likeliest first.
        anchor: Of the section in docs/does-not-reproduce.md.
    """

    text: str
    remedies: tuple[str, ...]
    anchor: str


def added(*gradients: Vectors) -> Vectors:
    """Return the sum of gradients; a parameter that one lacks is zero there."""
    result: Vectors = {}
    for gradient in gradients:
        for name, g in gradient.items():
            result[name] = result[name] + g if name in result else g
    return result


def norms(gradient: Vectors) -> dict[str, float]:
    """Return the norm of each."""
    return {name: float(g.double().norm()) for name, g in gradient.items()}
