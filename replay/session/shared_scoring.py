"""Answers a question on several processes: each does parts of the work and puts them on file.

What a pass finds at a step, for a chunk of test examples, is a part. Where steps are independent,
processes take segments of the run; where they remember each other, chunks, and walk them backwards
from the end, while processes of a host hand the training side on to each other. The first process
adds the parts up in the order in which one process alone does, so that no bit depends on how many
there are.
"""

from __future__ import annotations

import zlib
from functools import partial
from itertools import chain, zip_longest

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
from replay.session.chunk_walks import ChunkWalks, of_hand
from replay.session.going_on import recognise, recognise_losses
from replay.session.grid import Grid
from replay.session.question import Question
from replay.session.segments import segments
from replay.session.shared_tables import added_up, of_checkpoint, of_step, pieces
from replay.states.checkpoints import checkpoint_at


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
    advanced = group.shows(bars.task(group.counted, work.missing))
    work.do(advanced)
    if not group.ended(advanced):
        return None
    parts.refresh()
    room = Room(run.for_tables, parts.path and parts.path.parent)
    return added_up(run, question, parts, work.grid, room, plain=work.plain)


class _Work:
    """What there is to do, for whichever process does it.

    Attributes:
        plain: Whether steps are independent.
        grid: How the work is divided.
    """

    def __init__(self, run: BoundRun, question: Question, group: Group, parts: Parts) -> None:
        self._run, self._question, self._group, self._parts = run, question, group, parts
        self._walks = ChunkWalks(run, question, group, parts)
        self.plain = not question.walking or self._walks.plain
        self.grid = Grid(run, question, plain=self.plain)
        with group.agreeing():
            if self.grid.holds and group.leads:  # all look at the examples, each at some
                self.grid.decide(parts)
        with group.agreeing():
            if not group.leads:
                parts.refresh()
            self.grid.adopt(parts)
            self._recognise()
        self.grid.blocks.agree(group, parts)

    def _recognise(self) -> None:
        """Raise InputError if examples do not have the values that they had when the job began."""
        k = self._question.ends[0]
        state, name = self._run.states.at(k), f"snapshot {k}"

        def measured(chunk: Examples) -> int:
            return zlib.crc32(chunk.values(state, name).cpu().numpy().tobytes())

        jobs = [partial(measured, chunk) for _, chunk in self.grid.chunks]
        values = list(self._group.divided("test values", jobs))
        if self._group.leads:
            recognise(self._parts, "set of test values", np.array(values))
            recognise_losses(self._run, self._parts, min(k, self._run.states.last - 1))

    @property
    def missing(self) -> int:
        """How many parts are not on file."""
        names = chain(
            (of_step(t, rows) for rows, _ in self.grid.chunks for t in self._steps),
            (of_checkpoint(k, rows) for rows, _ in self.grid.chunks for k in self._checkpoints),
        )
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
        group, chunks = self._group, self.grid.chunks
        if self.plain:
            for steps in segments(self._run.states, self._question.steps, group.size):
                if group.claims(f"steps from {steps.start}"):
                    self._walks.alone(chunks, steps, advanced)
            return
        dealt = [self.grid.dealt(rank, group.size) for rank in range(group.size)]
        hands = list(zip_longest(*dealt, fillvalue=[]))
        for number, one in enumerate(hands):
            self._walks.together(number, one, advanced)
        for hand in chain.from_iterable(dealt):  # whoever has them never came to some
            if group.claims(of_hand(hand)):
                self._walks.alone(hand, self._question.steps, advanced)

    def _score(self, k: int, rows: slice, chunk: Examples) -> None:
        """Put on file what methods score at a checkpoint, some training examples at a time."""
        point, question = checkpoint_at(self._run.states, k), self._question
        one, names = RunExamples(chunk, self._run.states), point.scale.keys()
        gradients = one.gradients(k, point.state, point.name, names=names)
        found = self._run.states.found(range(self._run.states.last))
        if not question.walking and k in question.ends:
            found["values"] = one.values(k, point.state, point.name).cpu().numpy()
        for name, columns, blocks in pieces(k, rows, self.grid.blocks):
            if name in self._parts:
                continue
            tables = {"columns": np.array([columns.start, columns.stop])}
            for method in question.summing:
                assert method.score is not None
                table = np.zeros((len(chunk), columns.stop - columns.start))
                for some, scores in method.score(point, gradients, blocks):
                    table[:, some] = scores.numpy()
                tables[method.name] = table
            self._parts.add(name, {**tables, **(found if name == of_checkpoint(k, rows) else {})})
