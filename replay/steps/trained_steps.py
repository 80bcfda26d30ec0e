"""The training side of steps at the states before them: some steps in one pass where that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.binding import Models
from replay.evaluate.nested import moved
from replay.evaluate.slots import Slots, is_large
from replay.evaluate.state import State, States, stacked, step_name
from replay.evaluate.together import Together, kind_of, refused
from replay.evaluate.train_side import batch_of, replay_gradient, replay_step
from replay.evaluate.trained_step import TrainedStep
from replay.gradients.stacks import are_alike, unlike
from replay.steps.handed_steps import HandedSteps, Sequences
from replay.steps.schedule import Visit
from replay.task import Task
from tracer.records import Step


@dataclass(frozen=True)
class _Given:
    """What a pass needs of a step."""

    step: Step
    state: State
    batch: Any
    weights: Tensor


class TrainedSteps:
    """Gradients of steps, asked for one by one.

    Args:
        states: The run's states.
        task: Its task.
        models: The bound copies.
        window: The steps that are asked about; those before it come once, forwards.
        audited: Steps whose per-example gradients are proven.
        budget: Bytes for complete gradients.
        begin: Begins what processes of a host share; None shares nothing.
    """

    def __init__(
        self,
        states: States,
        task: Task,
        models: Models,
        window: range,
        audited: set[int],
        budget: int,
        begin: Sequences | None = None,
    ) -> None:
        self._work = _Passes(states, task, models, budget)
        self._slots = Slots(self._work, models.train, "gradients of a step", self._work.refused)
        self._engine, self._window, self._audited = models.train.engine, window, audited
        self._states, self._begin = states, begin
        self._handed: HandedSteps | None = None

    @property
    def why(self) -> str | None:
        """Why steps are taken one by one; None if they are stacked."""
        return self._slots.why

    def expect(self, visits: Sequence[Visit]) -> None:
        """Say which steps will be asked for next, in that order, by all who share them.

        Nothing ends what was said before.
        """
        if self._handed is not None:
            self._handed.end()
            self._handed = None
        if visits and self._begin is not None and self.why is not None:
            self._handed = HandedSteps(visits, self._states, self._computed, self._begin)

    def of(self, t: int, *, keep: bool = True) -> TrainedStep:
        """Return the gradients of a step, or at least (without ``keep``) their sum."""
        found = None if self._handed is None else self._handed.get(t, keep=keep)
        return self._computed(t, keep) if found is None else found

    def _computed(self, t: int, keep: bool) -> TrainedStep:
        if keep and t in self._audited:
            self._engine.audit()
        window = self._window
        found = self._slots.get(t, window if t in window else range(t, window.start), f"step {t}")
        if found is not None:
            return found
        return self._work.pass_over(replay_step if keep else replay_gradient, t)


class _Passes:
    """Passes over steps."""

    def __init__(self, states: States, task: Task, models: Models, budget: int) -> None:
        self._states, self._task, self._models, self._budget = states, task, models, budget
        self._together = (
            None if isinstance(task.loss, Mapping) else Together(task.loss, models.train)
        )
        self._kind: Any = None  # of step 0: others take passes of their own

    def alone(self, t: int) -> TrainedStep:
        return self.pass_over(replay_step, t)

    def pass_over(self, replay: Callable[..., TrainedStep], t: int) -> TrainedStep:
        """Take one step's pass, with its examples' gradients or without."""
        bound, step = self._models.train, self._states.step(t)
        known = self._task, step, self._states.at(t), bound, step.trained
        return replay(*known, device=self._models.device, budget=self._budget)

    def refused(self) -> str | None:
        if self._task.penalty is not None:
            return "the task has a penalty"
        if self._together is None:
            return "several optimizers have losses of their own"
        count = len(self._states.step(0).batch_ids)
        return is_large(self._models.train, count) or refused(self._models.train)

    def given(self, t: int) -> _Given | None:
        step = self._states.step(t)
        if len(step.micro_batches) != 1:
            return None
        micro, device = step.micro_batches[0], self._models.device
        batch = batch_of(self._task, micro, step_name(step))
        batch = moved(batch, device, self._models.train.dtype)
        kind = kind_of(batch)
        if kind is None:
            return None
        if t == 0:
            self._kind = step.trained, kind
        elif self._kind is None:
            self.given(0)
        if (step.trained, kind) != self._kind:
            return None
        return _Given(step, self._states.at(t), batch, micro.coefficients)

    def stack(self, given: Sequence[_Given]) -> list[TrainedStep | None]:
        assert self._together is not None
        self._models.train.eval_mode.leave()
        weights = torch.stack([one.weights for one in given]).to(self._models.device)
        found = self._together.gradients(
            stacked([one.state for one in given]),
            [one.batch for one in given],
            given[0].step.trained,
            weights,
        )
        rows = []
        for s, one in enumerate(given):
            part = found.at(s)
            ids = one.step.batch_ids
            rows.append(None if part is None else TrainedStep([part], ids, part.total, {}))
        return rows

    def unlike(self, found: TrainedStep) -> str | None:
        return next(filter(None, map(unlike, found.batches)), None)

    def agree(self, found: TrainedStep, expected: TrainedStep) -> bool:
        pairs = zip(found.batches, expected.batches, strict=True)
        return self._models.train.engine.steady and all(are_alike(*pair) for pair in pairs)
