"""Walks along the run with chunks of test examples; what is found of each step is put on file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from replay.evaluate.test_side import Examples
from replay.processes.alone import Done
from replay.processes.group import Group
from replay.progress import Progress
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.fellows import Fellows
from replay.session.question import Question
from replay.session.run_pass import RunPass, neighbours
from replay.session.segments import runs
from replay.session.shared_tables import of_chunk, of_step
from replay.session.step_result import StepResult
from replay.steps.tape import Tape

Chunks = list[tuple[slice, Examples]]
_Begun = tuple[slice, Examples, Any]  # a chunk, and the state of its walk so far; None is none


class ChunkWalks:
    """Walks of one process of a job.

    Args:
        run: The run.
        question: What is asked.
        group: The processes.
        parts: What is finished, and where walks put what they find.
    """

    def __init__(self, run: BoundRun, question: Question, group: Group, parts: Parts) -> None:
        self._run, self._question, self._group, self._parts = run, question, group, parts
        self._tapes: dict[range, Tape] = {}
        self._fellows = Fellows(group, run.budget, (parts.path or Path()).parent)

    @property
    def plain(self) -> bool:
        """Whether steps are independent."""
        return self._tape(self._question.steps).plain

    def alone(self, chunks: Chunks, steps: range, advanced: Done) -> None:
        """Put on file what is missing of some steps."""
        self._fellows.leave()
        for window, some in self._missing(chunks, steps).items():
            self._walk(self._tape(window), some, advanced)

    def together(self, number: int, hands: Sequence[Chunks], advanced: Done) -> None:
        """Put on file what is missing of all steps, together with others of this host.

        Whoever has nothing to do helps them.

        Args:
            number: Of the walk.
            hands: The chunks of each process.
            advanced: Counts parts.
        """
        self._tapes = {some: tape for some, tape in self._tapes.items() if tape.is_kept}
        rank, steps = self._group.rank, self._question.steps
        mine = hands[rank] if self._group.claims(of_hand(hands[rank])) else []
        known = self._missing(mine, steps)
        own = [(window, self._tape(window).is_kept) for window in known]
        having = [q for q in self._group.neighbours if hands[q]]
        common = self._fellows.meet(number, own, having)
        if common is not None and not known:
            self._tapes = {}  # those of the others are new, too: all share one sequence of steps
            known = {common: []}
        for window, some in known.items():
            self._walk(self._tape(window), some, advanced)

    def _missing(self, chunks: Chunks, steps: range) -> dict[range, list[_Begun]]:
        """Return chunks, by the steps through which they are to be walked."""
        known: dict[range, list[_Begun]] = {}
        for rows, chunk in chunks:
            for window, state in self._left(rows, steps):
                known.setdefault(window, []).append((rows, chunk, state))
        return known

    def _left(self, rows: slice, steps: range) -> list[tuple[range, Any]]:
        """Return which steps a chunk is to be walked through, and its state before each."""
        missing = [t for t in steps if of_step(t, rows) not in self._parts]
        if self.plain or not missing:
            return [(some, None) for some in runs(missing)]
        state = self._parts.state(of_chunk(rows))
        if state is None or missing[-1] >= state["step"]:  # a step that it has behind it was lost
            return [(steps, None)]
        return [(range(steps.start, state["step"]), state["walk"])]

    def _begun(self, tape: Tape, chunk: Examples, state: Any) -> RunPass:
        found = RunPass(tape, chunk, replace(self._question, steps=tape.window, checkpoints=[]))
        if state is not None:
            found.restore(state)
        return found

    def _walk(self, tape: Tape, chunks: list[_Begun], advanced: Done) -> None:
        """Go through a tape's steps, for several chunks at once."""
        walks = [(rows, self._begun(tape, chunk, state)) for rows, chunk, state in chunks]
        joined = any(one.joins for _, one in walks)
        visits = ((one, tape.trained_at(one).for_several()) for one in tape.walk())
        for steps in neighbours(visits, joined=joined):
            for rows, one in walks:
                for result in one.at(steps):
                    if of_step(result.index, rows) not in self._parts:
                        self._add(rows, result, tape)  # else it lies behind the last state kept
                        advanced()
            t = steps[-1][0].transition.step.index
            if not tape.plain and self._fellows.keep() and t > tape.window.start:
                for rows, one in walks:
                    self._parts.keep_state(of_chunk(rows), {"step": t, "walk": one.state()})

    def _add(self, rows: slice, result: StepResult, tape: Tape) -> None:
        """Put on file what was found at a step."""
        t = result.index
        found = self._run.states.found(range(t, t + 1))
        outside = {"outside": np.array(t in tape.factors.inferred)}
        self._parts.add(of_step(t, rows), {**result.row(), **outside, **found})

    def _tape(self, steps: range) -> Tape:
        """Return the training side of some steps; the last one serves the next walk, too."""
        if steps not in self._tapes:
            begin = self._fellows.begin if self._run.computing.device.type == "cpu" else None
            how = {"proven": self._question.steps, "begin": begin, **self._question.tape}
            self._tapes = {steps: self._run.tape(steps, Progress(enabled=False), **how)}
        return self._tapes[steps]


def of_hand(chunks: Chunks) -> str:
    """Return how the chunks that one process has at once are called."""
    return of_chunk(chunks[0][0]) if chunks else "nothing"
