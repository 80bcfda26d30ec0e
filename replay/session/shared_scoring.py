"""Answers a question on several processes: each does parts of the work and puts them on file.

What a pass finds at a step, for a chunk of test examples, is a part. Where steps are independent,
processes take segments of the run; where they remember each other, chunks, and walk each backwards
from the end. The first process adds the parts up in the order in which one process alone does, so
that no bit depends on how many there are.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from replay.evaluate.run_examples import RunExamples
from replay.evaluate.test_side import Examples
from replay.processes.alone import Done
from replay.processes.group import Group
from replay.progress import Progress
from replay.results.influence import Influence
from replay.results.parts import Parts
from replay.results.room import Room
from replay.session.bound_run import BoundRun
from replay.session.going_on import recognise
from replay.session.grid import Grid, segments
from replay.session.question import Question
from replay.session.run_pass import RunPass, neighbours
from replay.session.shared_tables import added_up, of_checkpoint, of_chunk, of_step
from replay.session.step_result import StepResult
from replay.states.checkpoints import checkpoint_at
from replay.steps.tape import Tape

Chunks = list[tuple[slice, Examples]]
Walks = list[tuple[slice, RunPass]]
_KEPT = 30.0  # seconds between states of a backward walk that are kept


def answered_together(
    run: BoundRun, question: Question, group: Group, parts: Parts, bars: Progress
) -> Influence | None:
    """Do a part of the work on a question.

    Args:
        run: The run.
        question: What is asked.
        group: The processes.
        parts: What is finished.
        bars: Where the process that leads shows how far all are.

    Returns:
        The result, on the process that leads; None on others.
    """
    work = _Work(run, question, group, parts)
    advanced = group.shows(bars.task(f"{group.size} processes", work.missing))
    work.do(advanced)
    if not group.ended(advanced):
        return None
    parts.refresh()
    room = Room(run.budget, parts.path and parts.path.parent)
    return added_up(run, question, parts, work.grid, room, plain=work.plain)


class _Work:
    """What there is to do, for whichever process does it.

    Attributes:
        plain: Whether steps are independent.
        grid: How the work is divided.
    """

    def __init__(self, run: BoundRun, question: Question, group: Group, parts: Parts) -> None:
        self._run, self._question, self._group, self._parts = run, question, group, parts
        self._silent = Progress(enabled=False)
        self._tapes: dict[range, Tape] = {}
        self.plain = not question.walking or self._tape(question.steps).plain
        self.grid = Grid(run, question, plain=self.plain)
        with group.agreeing():
            if self.grid.holds and group.leads:  # all look at the examples, each at some
                self.grid.decide(parts)
        with group.agreeing():
            if not group.leads:
                parts.refresh()
            self.grid.adopt(parts)
            self._recognise()

    def _recognise(self) -> None:
        """Raise InputError if test examples do not measure what they did when the job began."""
        k = self._question.ends[0]
        state, name = self._run.states.at(k), f"snapshot {k}"

        def measured(chunk: Examples) -> int:
            return zlib.crc32(chunk.values(state, name).cpu().numpy().tobytes())

        jobs = [partial(measured, chunk) for _, chunk in self.grid.chunks]
        values = list(self._group.divided("test values", jobs))
        if self._group.leads:
            recognise(self._parts, "set of test values", np.array(values))

    @property
    def missing(self) -> int:
        """How many parts are not on file."""
        names = [
            *(of_step(t, rows) for rows, _ in self.grid.chunks for t in self._steps),
            *(of_checkpoint(k, rows) for rows, _ in self.grid.chunks for k in self._checkpoints),
        ]
        return sum(name not in self._parts for name in names)

    @property
    def _steps(self) -> range:
        return self._question.steps if self._question.walking else range(0)

    @property
    def _checkpoints(self) -> list[int]:
        return self._question.checkpoints if self._question.summing else []

    def do(self, advanced: Done) -> None:
        """Take what no other process has taken, until nothing is left."""
        if self._question.walking:
            self._walk_all(advanced)
        for k in self._checkpoints:
            for rows, chunk in self.grid.chunks:
                if (name := of_checkpoint(k, rows)) in self._parts or not self._group.claims(name):
                    continue
                self._score(k, rows, chunk)
                advanced()

    def _walk_all(self, advanced: Done) -> None:
        if self.plain:
            for steps in segments(self._run.states, self._question.steps, self._group.size):
                if self._group.claims(f"steps from {steps.start}"):
                    self._walk(self.grid.chunks, steps, advanced)
            return
        for chunks in self.grid.together(self._group.size):
            if self._group.claims(of_chunk(chunks[0][0])):
                self._walk(chunks, self._question.steps, advanced)

    def _walk(self, chunks: Chunks, steps: range, advanced: Done) -> None:
        """Put on file what is missing of some steps, for chunks that have as much of them."""
        known: dict[range, Walks] = {}
        for rows, chunk in chunks:
            window, state = self._missing(rows, steps)
            if window:
                asked = replace(self._question, steps=window, checkpoints=[])
                one = RunPass(self._tape(window), chunk, asked)
                if state is not None:
                    one.restore(state)
                known.setdefault(window, []).append((rows, one))
        for window, walks in known.items():
            self._walk_window(self._tape(window), walks, advanced)

    def _missing(self, rows: slice, steps: range) -> tuple[range, Any]:
        """Return which steps a chunk is to be walked through, and its state before that."""
        missing = [t for t in steps if of_step(t, rows) not in self._parts]
        if not missing:
            return range(0), None
        if self.plain:
            return range(missing[0], steps.stop), None
        state = self._parts.state(of_chunk(rows))
        if state is None or missing[-1] >= state["step"]:  # a step that it has behind it was lost
            return steps, None
        return range(steps.start, state["step"]), state["walk"]

    def _walk_window(self, tape: Tape, walks: Walks, advanced: Done) -> None:
        """Go through a tape's steps, for several chunks at once."""
        kept = time.monotonic()
        for some in neighbours(tape.walk(), joined=walks[0][1].joins):
            steps = [(replayed, tape.trained_at(replayed)) for replayed in some]
            for rows, one in walks:
                for result in one.at(steps):
                    if of_step(result.index, rows) not in self._parts:
                        self._add(rows, result, tape)  # else it lies behind the last state kept
                        advanced()
            t = some[-1].transition.step.index
            if self.plain or t == tape.window.start or time.monotonic() - kept < _KEPT:
                continue
            for rows, one in walks:
                self._parts.keep_state(of_chunk(rows), {"step": t, "walk": one.state()})
            kept = time.monotonic()

    def _add(self, rows: slice, result: StepResult, tape: Tape) -> None:
        """Put on file what was found at a step."""
        t = result.index
        found = self._run.states.found(range(t, t + 1))
        outside = {"outside": np.array(t in tape.factors.inferred)}
        self._parts.add(of_step(t, rows), {**result.row(), **outside, **found})

    def _score(self, k: int, rows: slice, chunk: Examples) -> None:
        """Put on file what methods score at a checkpoint, some training examples at a time."""
        point, question = checkpoint_at(self._run.states, k), self._question
        one, names = RunExamples(chunk, self._run.states), point.scale.keys()
        gradients = one.gradients(k, point.state, point.name, names=names)
        found = self._run.states.found(range(self._run.states.last))
        if not question.walking and k in question.ends:
            found["values"] = one.values(k, point.state, point.name).cpu().numpy()
        for columns, blocks in self.grid.columns:
            last = columns.stop == len(question.train_ids)
            name = of_checkpoint(k, rows, None if last else columns)
            if name in self._parts:
                continue
            tables = {"columns": np.array([columns.start, columns.stop])}
            for method in question.summing:
                assert method.score is not None
                table = np.zeros((len(chunk), columns.stop - columns.start))
                for some, scores in method.score(point, gradients, blocks):
                    table[:, some] = scores.numpy()
                tables[method.name] = table
            self._parts.add(name, {**tables, **(found if last else {})})

    def _tape(self, steps: range) -> Tape:
        """Return the training side of some steps; the last one serves the next chunk, too."""
        if steps not in self._tapes:
            how = {"proven": self._question.steps, **self._question.tape}
            self._tapes = {steps: self._run.tape(steps, self._silent, **how)}
        return self._tapes[steps]
