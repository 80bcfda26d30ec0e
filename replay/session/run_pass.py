"""One pass over the run for a chunk of test examples: every step credited, every drop measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from replay.evaluate.run_examples import RunExamples
from replay.evaluate.test_side import Examples
from replay.evaluate.trained_step import TrainedStep
from replay.path.adjoint import Adjoint
from replay.path.end_gradients import EndGradients
from replay.path.step_path import Split, StepPath
from replay.path.test_values import Drop, Values
from replay.path.unrolling import Unrolling
from replay.session.question import Question
from replay.session.step_result import StepResult
from replay.steps.replayed_step import ReplayedStep
from replay.steps.tape import Tape


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

    def steps(self) -> Iterator[StepResult]:
        """Yield every step, credited by every method that walks."""
        for replayed in self._tape.walk():
            yield self.at(replayed, self._tape.trained_at(replayed))

    def at(self, replayed: ReplayedStep, trained: TrainedStep) -> StepResult:
        """Return what is found at the next step of the walk; ``trained`` has its gradients."""
        names, wanted = self._question.names, frozenset(self._question.checkpoints)
        now = replayed.transition
        drop = self._values.around(now)
        self._ends.move(now)
        splits, credited = self._divided(replayed, trained, drop)
        for method in self._question.walking:
            if method.credit is not None:
                test = self._ends.get(0)
                credited[method.name] = method.credit(replayed, trained, test, names)
            if method.name in self._unrolled:
                unrolled = self._unrolled[method.name]
                credited[method.name] = unrolled.credits(replayed, trained, names)
        t = now.step.index
        states = {t} if t + 1 < self._tape.stop else {t, t + 1}
        snapshots = self._ends.known(states, wanted)
        return StepResult(t, trained.ids, drop, splits, credited, names is not None, snapshots)

    def _divided(
        self, replayed: ReplayedStep, trained: TrainedStep, drop: Drop
    ) -> tuple[dict[str, Split], dict[str, Tensor]]:
        """Divide a step by each method that does, and carry credit on to later steps."""
        if not self._adjoints:
            return {}, {}
        line, tolerance = self._line(replayed, trained, drop), self._question.tolerance
        methods = self._question.walking
        splits = {m.name: m.divide(line, tolerance) for m in methods if m.divide is not None}
        credited = {}
        for name, split in splits.items():
            if not line.keeps:
                credited[name] = split.node.shares
                continue
            wanted, mean = line.parts if line.later else [], line.mean(split.node)
            names, adjoint = self._question.names, self._adjoints[name]
            credited[name], parts = adjoint.credits(replayed, trained, mean, names, wanted)
            if line.later:
                splits[name] = split.with_parts(parts)
        return splits, credited

    def _line(self, replayed: ReplayedStep, trained: TrainedStep, drop: Drop) -> StepPath:
        return StepPath(
            replayed,
            trained,
            self._examples,
            self._run,
            (partial(self._ends.get, 0), partial(self._ends.get, 1)),
            (drop.before, drop.moved),
            self._question.names,
            keeps=not self._tape.plain or self._question.names is not None,
            compares=self._question.refines,
        )
