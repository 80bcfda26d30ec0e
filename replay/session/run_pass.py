"""One pass over the run for a chunk of test examples: every step credited, every drop measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from replay.evaluate.run_examples import RunExamples
from replay.evaluate.slots import SLOTS
from replay.evaluate.test_side import Examples
from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms.per_example import PerExample
from replay.path.adjoint import Adjoint
from replay.path.bundle import bundled
from replay.path.end_gradients import EndGradients
from replay.path.step_path import Split, StepPath
from replay.path.test_values import Drop, Values
from replay.path.unrolling import Unrolling
from replay.session.question import Question
from replay.session.step_result import StepResult
from replay.steps.replayed_step import ReplayedStep
from replay.steps.tape import Tape

Visit = tuple[ReplayedStep, TrainedStep]


@dataclass(frozen=True)
class _Look:
    """A step before it is divided."""

    line: StepPath
    drop: Drop
    credited: dict[str, Tensor]
    snapshots: dict[int, PerExample]


class RunPass:
    """Goes once through the steps of a tape.

    Args:
        tape: The steps; where they remember earlier ones they come in descending order.
        examples: The chunk of test examples.
        question: The methods, and over which parameters products are taken.
    """

    def __init__(self, tape: Tape, examples: Examples, question: Question) -> None:
        self._tape, self._examples, self._question = tape, examples, question
        self._run = RunExamples(examples, tape.states)
        self._values = Values(examples, self._run, tape.window)
        self._ends = EndGradients(self._run, tape.window)
        walking = question.walking
        self._unrolled = {m.name: m.unroll(tape, examples) for m in walking if m.unroll}
        self._adjoints = {m.name: Adjoint(len(examples)) for m in walking if m.divide}

    @property
    def _walks(self) -> dict[str, Adjoint | Unrolling]:
        return {**self._adjoints, **self._unrolled}

    def state(self) -> dict[str, Any]:
        """Return what it remembers of the steps so far, as tensors and numbers."""
        return {name: walk.state() for name, walk in self._walks.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps whose ``state`` it is; the tape ends where they begin."""
        for name, walk in self._walks.items():
            walk.restore(state[name])

    @property
    def joins(self) -> bool:
        """Whether neighbouring steps are divided together: those whose states are in one pass."""
        return bool(self._adjoints) and self._run.together

    def steps(self) -> Iterator[StepResult]:
        """Yield every step, credited by every method that walks."""
        visits = ((one, self._tape.trained_at(one)) for one in self._tape.walk())
        for some in neighbours(visits, joined=self.joins):
            yield from self.at(some)

    def at(self, steps: Sequence[Visit]) -> list[StepResult]:
        """Return what is found at the next steps of the walk, each with its gradients."""
        looks = [self._look(*step) for step in steps]
        splits = self._divided([look.line for look in looks])
        return [self._result(look, split) for look, split in zip(looks, splits, strict=True)]

    def _look(self, replayed: ReplayedStep, trained: TrainedStep) -> _Look:
        """Look at both ends of a step, and credit it by the methods that do not divide it."""
        now, names = replayed.transition, self._question.names
        if now.step.index == self._tape.last:
            self._examples.audit()
        drop = self._values.around(now)
        self._ends.move(now)
        needed = range(1 + self._question.refines) if self._adjoints else ()
        line = self._line(replayed, trained, drop, [self._ends.get(u) for u in needed])
        credited = {}
        for method in self._question.walking:
            if method.credit is not None:
                test = self._ends.get(0)
                credited[method.name] = method.credit(replayed, trained, test, names)
            if method.name in self._unrolled:
                unrolled = self._unrolled[method.name]
                credited[method.name] = unrolled.credits(replayed, trained, names)
        t = now.step.index
        states = {t} if t + 1 < self._tape.stop else {t, t + 1}
        wanted = frozenset(self._question.checkpoints)
        return _Look(line, drop, credited, self._ends.known(states, wanted))

    def _divided(self, lines: list[StepPath]) -> list[dict[str, Split]]:
        """Divide steps by each method that does."""
        splits: list[dict[str, Split]] = [{} for _ in lines]
        bundles = bundled(lines) if self._adjoints else {}
        for method in self._question.walking:
            if method.divide is not None:
                divided = method.divide(lines, bundles, self._question.tolerance)
                for one, split in zip(splits, divided, strict=True):
                    one[method.name] = split
        return splits

    def _result(self, look: _Look, splits: dict[str, Split]) -> StepResult:
        """Carry credit on to later steps."""
        line, credited, names = look.line, look.credited, self._question.names
        for name, split in splits.items():
            if not line.keeps:
                credited[name] = split.node.shares
                continue
            wanted, mean = line.parts if line.later else [], line.mean(split.node)
            earned = self._adjoints[name].credits(line.replayed, line.trained, mean, names, wanted)
            credited[name], parts = earned
            if line.later:
                splits[name] = split.with_parts(parts)
        t, ids = line.replayed.transition.step.index, line.trained.ids
        restricted = names is not None
        return StepResult(t, ids, look.drop, splits, credited, restricted, look.snapshots)

    def _line(
        self, replayed: ReplayedStep, trained: TrainedStep, drop: Drop, ends: list[PerExample]
    ) -> StepPath:
        return StepPath(
            replayed,
            trained,
            self._examples,
            self._run,
            ends,
            (drop.before, drop.moved),
            self._question.names,
            keeps=not self._tape.plain or self._question.names is not None,
            compares=self._question.refines,
        )


def neighbours(visits: Iterable[Visit], *, joined: bool) -> Iterator[tuple[Visit, ...]]:
    """Yield steps one by one; or joined, those that are in one stack."""
    blocks = itertools.groupby(visits, lambda one: one[0].transition.step.index // SLOTS)
    if joined:
        yield from (tuple(block) for _, block in blocks)
    else:
        yield from ((one,) for one in visits)
