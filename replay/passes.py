"""One pass over the run for a chunk of test examples: every step split, every drop measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from replay import displacement, ideal, tracin
from replay.gradients.per_example import PerExample
from replay.line import Line, Split
from replay.measured import Examples, Models
from replay.task import Task
from replay.trained import replay_step
from replay.trajectory import State, Transition, transitions
from tracer.reader import RunLog
from tracer.records import ID

TERMS = ("data", "regulariser", "history", "buffers", "rounding", "residual", "measured")


@dataclass(frozen=True)
class Drop:
    """Values of ``φ`` around one step, float64 ``(m,)``.

    Attributes:
        before: ``φ(w_t; β_t)``.
        moved: ``φ(w_{t+1}; β_t)``.
        after: ``φ(w_{t+1}; β_{t+1})``.
    """

    before: Tensor
    moved: Tensor
    after: Tensor

    @property
    def measured(self) -> Tensor:
        """``φ(w_t; β_t) − φ(w_{t+1}; β_{t+1})``."""
        return self.before - self.after


@dataclass(frozen=True)
class StepResult:
    """What a pass found at one step.

    Attributes:
        ids: IDs of the occurrences, ``(b,)``.
        drop: Values of ``φ``.
        splits: The split of each method.
    """

    ids: list[ID]
    drop: Drop
    splits: dict[str, Split]

    def terms(self, method: str) -> dict[str, Tensor]:
        """Return the terms of the completeness identity, each ``(m,)``."""
        node = self.splits[method].node
        data, regulariser, rounding = node.parts
        return {
            "data": data,
            "regulariser": regulariser,
            "history": torch.zeros_like(data),
            "buffers": self.drop.moved - self.drop.after,
            "rounding": rounding,
            "residual": self.drop.before - self.drop.moved - node.slope,
            "measured": self.drop.measured,
        }


class Values:
    """``φ`` along the run; each state is evaluated once."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._next: Tensor | None = None

    def around(self, transition: Transition) -> Drop:
        """Return the values around the next step; steps come in order."""
        before, after = transition.before, transition.after
        first = self._next
        if first is None:
            first = self._examples.values(before, transition.name)
        # the name of the state's own step: a NaN is reported where it first shows
        last = self._examples.values(after, f"after {transition.name}")
        moved = last
        if not before.same_buffers(after):
            mixed = State(after.parameters, before.buffers)
            moved = self._examples.values(mixed, f"after {transition.name}")
        self._next = last
        return Drop(first.cpu(), moved.cpu(), last.cpu())


@dataclass(frozen=True)
class Settings:
    """How steps are split.

    Attributes:
        methods: Those of ``"tracin"``, ``"ideal"`` that were asked for.
        tolerance: ``ideal_tolerance``.
        allow_mismatch: Go on where a step does not reproduce.
        budget: Bytes for stored gradients of the training side.
    """

    methods: tuple[str, ...]
    tolerance: float | None
    allow_mismatch: bool
    budget: int


def drops(log: RunLog, examples: Examples) -> Iterator[Drop]:
    """Yield the measured drop of every step, for any optimizer."""
    values = Values(examples)
    for transition in transitions(log):
        yield values.around(transition)


def steps(
    log: RunLog, task: Task, models: Models, examples: Examples, settings: Settings
) -> Iterator[StepResult]:
    """Yield every step, split by every method, for one chunk of test examples."""
    rule = log.metadata["update_rule"]
    values = Values(examples)
    carried: PerExample | None = None
    for transition in transitions(log):
        rates = displacement.plain_sgd_rates(transition.step, rule)
        trained = replay_step(
            task,
            transition,
            models.train,
            list(rates),
            device=models.device,
            budget=settings.budget,
        )
        parts = displacement.split(transition, rates, trained.gradient, trained.penalty)
        if not settings.allow_mismatch:
            displacement.check(
                transition,
                rates,
                parts,
                path=str(log.path),
                same_dtype=models.test.dtype is None,
            )
        drop = values.around(transition)
        ends = _Ends(transition, examples, carried)
        line = Line(
            transition,
            trained,
            parts,
            rates,
            examples,
            (partial(ends.get, 0), partial(ends.get, 1)),
            (drop.before, drop.moved),
            parts.norm(),
        )
        yield StepResult(trained.ids, drop, _splits(line, settings))
        carried = ends.carried()


def _splits(line: Line, settings: Settings) -> dict[str, Split]:
    methods: dict[str, Callable[[], Split]] = {
        "tracin": lambda: tracin.split(line),
        "ideal": lambda: ideal.split(line, settings.tolerance),
    }
    return {name: methods[name]() for name in settings.methods}


class _Ends:
    """Test gradients at both ends of a step, computed at most once and handed on."""

    def __init__(
        self, transition: Transition, examples: Examples, carried: PerExample | None
    ) -> None:
        self._transition, self._examples = transition, examples
        self._found: dict[int, PerExample] = {} if carried is None else {0: carried}

    def get(self, u: int) -> PerExample:
        transition = self._transition
        if u not in self._found:
            state = transition.after if u else transition.before
            at = State(state.parameters, transition.before.buffers)
            self._found[u] = self._examples.gradients(at, transition.name)
        return self._found[u]

    def carried(self) -> PerExample | None:
        """Return the gradients at ``w_{t+1}`` if the next step can begin with them."""
        if self._transition.before.same_buffers(self._transition.after):
            return self._found.get(1)
        return None
