"""How a question is divided among processes: chunks of examples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from replay.evaluate.chunks import placed
from replay.evaluate.test_side import Examples
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.question import Question
from tracer.errors import InputError

_NAME = "grid"
_CHUNKS, _MOST = 4, 32  # of test examples that are walked back: at least, and examples in each
_BLOCK = 64  # other examples taken together at most
_COLUMNS = 64  # blocks of training examples whose scores at a checkpoint are one part


class Grid:
    """Chunks of examples.

    Rounding depends on how many examples are multiplied together, so chunks do not depend on how
    many processes there are, nor on their memory where it holds such a chunk.

    Args:
        run: The run.
        question: What is asked.
        plain: Whether steps are independent.

    Attributes:
        chunks: Of test examples, with their rows.
    """

    def __init__(self, run: BoundRun, question: Question, *, plain: bool) -> None:
        self._run, self._question, self._plain = run, question, plain
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
            raise InputError(
                f"{parts.path} has the work divided into chunks of {asked} test examples, "
                f"and the memory given holds {most}.\n"
                "1. Give as much as before: memory=, --memory.\n"
                "2. To begin anew, remove that folder."
            )

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

    @cached_property
    def blocks(self) -> list[Examples]:
        """Chunks of training examples."""
        return self._run.chunks.of(self._question.train_ids, "train", most=_BLOCK)

    @property
    def columns(self) -> Iterator[tuple[slice, list[Examples]]]:
        """Yield blocks of training examples, some at a time, with their columns."""
        start = 0
        for k in range(0, len(self.blocks), _COLUMNS):
            some = self.blocks[k : k + _COLUMNS]
            stop = start + sum(map(len, some))
            yield slice(start, stop), some
            start = stop
