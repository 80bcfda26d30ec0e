"""How a question is divided among processes: chunks of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from replay.evaluate.chunks import placed
from replay.evaluate.test_side import Examples
from replay.processes.group import Group
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.memory import not_held
from replay.session.question import Question
from tracer.records import ID

_NAME, _BLOCKS = "grid", "training blocks"
_CHUNKS, _MOST = 4, 32  # of test examples that are walked back: at least, and examples in each
_BLOCK = 64  # other examples taken together at most
_COLUMNS = 64  # blocks of training examples whose scores at a checkpoint are one part


class TrainingBlocks:
    """Training examples that are evaluated at checkpoints, some at a time.

    Args:
        run: The run.
        ids: Their IDs.

    Attributes:
        chunks: Of as many examples in all processes, as the job began.
    """

    def __init__(self, run: BoundRun, ids: Sequence[ID]) -> None:
        self._run, self._ids = run, ids
        self.chunks: list[Examples] = []

    def agree(self, group: Group, parts: Parts) -> None:
        """Cut them as it is on file; the process that leads puts it there, unless it is.

        Raises:
            InputError: This process has not the memory for it.
        """
        if not self._ids:
            return
        with group.agreeing():
            chunks = self._cut(_BLOCK)  # all look at some
            if group.leads and _BLOCKS not in parts:
                parts.note(_BLOCKS, {_BLOCKS: np.array(len(chunks[0]))})
        with group.agreeing():
            if not group.leads:
                parts.refresh()
            asked = int(parts[_BLOCKS][_BLOCKS])
            self.chunks = self._cut(asked)
            if (held := len(self.chunks[0])) < asked:
                raise not_held(parts.path, f"chunks of {asked} training examples", f"holds {held}")

    def _cut(self, most: int) -> list[Examples]:
        return self._run.chunks.of(self._ids, "train", most=most, between=False)

    @property
    def columns(self) -> Iterator[tuple[slice, list[Examples]]]:
        """Yield some chunks at a time, with their columns."""
        start = 0
        for k in range(0, len(self.chunks), _COLUMNS):
            some = self.chunks[k : k + _COLUMNS]
            stop = start + sum(map(len, some))
            yield slice(start, stop), some
            start = stop


class Grid:
    """Chunks of test examples.

    Rounding depends on how many examples are multiplied together, so chunks do not depend on how
    many processes there are, nor on their memory where it holds such a chunk.

    Args:
        run: The run.
        question: What is asked.
        plain: Whether steps are independent.

    Attributes:
        chunks: Of test examples, with their rows.
        blocks: Of training examples, where there are checkpoints.
    """

    def __init__(self, run: BoundRun, question: Question, *, plain: bool) -> None:
        self._run, self._question, self._plain = run, question, plain
        self.blocks = TrainingBlocks(run, question.train_ids if question.summing else [])
        self.chunks: list[tuple[slice, Examples]] = []

    def decide(self, parts: Parts) -> None:
        """Put on file how examples are divided, unless it is."""
        if _NAME not in parts:
            even = -(-len(self._question.test_ids) // _CHUNKS)
            most = _BLOCK if self._plain else min(_MOST, even)
            parts.note(_NAME, {"most": np.array(min(self.holds, most))})

    def adopt(self, parts: Parts) -> None:
        """Divide the work as it is on file.

        Raises:
            InputError: There is nothing, or this process has not the memory for it.
        """
        asked, most = int(parts[_NAME]["most"]), self.holds
        self.chunks = self._cut(asked)
        if most < asked:
            raise not_held(parts.path, f"chunks of {asked} test examples", f"holds {most}")

    def dealt(self, rank: int, processes: int) -> list[list[tuple[slice, Examples]]]:
        """Return the chunks that a process walks backwards with: as many at once as it holds.

        Args:
            rank: The number of the process.
            processes: How many there are.
        """
        rounds: list[list[tuple[slice, Examples]]] = []
        for rows, chunk in self.chunks[rank::processes]:
            held = sum(len(one) for _, one in rounds[-1]) if rounds else self.holds
            if held + len(chunk) > self.holds:
                rounds.append([])
            rounds[-1].append((rows, chunk))
        return rounds

    @cached_property
    def holds(self) -> int:
        """How many test examples the memory of this process holds at once."""
        return len(self._cut(None)[0][1])

    def _cut(self, most: int | None) -> list[tuple[slice, Examples]]:
        question = self._question
        kept = 0 if self._plain and question.names is None else question.vectors
        between = question.refines or not question.walking
        of = self._run.chunks.of
        return list(placed(of(question.test_ids, "test", most=most, kept=kept, between=between)))
