"""How a question is divided among processes; on file, so that whoever goes on divides it alike."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np

from replay.evaluate.chunks import BLOCK, placed
from replay.evaluate.test_side import Examples
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.question import Question
from tracer.errors import InputError

_NAME = "grid"
_CHUNKS, _MOST = 8, 16  # of test examples at least, and examples in each at most
_SEGMENTS = 8  # of a run whose steps are independent, for each process


class Grid:
    """Chunks of test examples, and segments of the run.

    Rounding depends on how many examples are multiplied together, so chunks do not depend on how
    many processes there are, nor on their memory where it holds 16 examples.

    Args:
        run: The run.
        question: What is asked.
        plain: Whether steps are independent.

    Attributes:
        segments: Of steps; one, where steps remember each other.
        chunks: Of test examples, with their rows.
    """

    def __init__(self, run: BoundRun, question: Question, *, plain: bool) -> None:
        self._run, self._question, self._plain = run, question, plain
        self.segments: list[range] = []
        self.chunks: list[tuple[slice, Examples]] = []

    def decide(self, parts: Parts, processes: int) -> None:
        """Put on file how the work is divided, unless it is."""
        if _NAME in parts:
            return
        steps, examples = self._question.steps, len(self._question.test_ids)
        most = min(self._holds, _MOST, -(-examples // _CHUNKS))
        starts = {steps.start}
        if self._plain:
            count = min(len(steps), _SEGMENTS * processes)
            even = (steps.start + round(k * len(steps) / count) for k in range(count))
            starts |= {max(steps.start, self._run.states.nearest(t)) for t in even}
        parts.add(_NAME, {"most": np.array(most), "starts": np.array(sorted(starts))})

    def adopt(self, parts: Parts) -> None:
        """Divide the work as it is on file.

        Raises:
            InputError: There is nothing, or this process has not the memory for it.
        """
        if _NAME not in parts:
            raise InputError(
                f"{parts.path} does not show what another process of the job has put there; "
                "every host must see the same folder (shared storage)."
            )
        found = parts[_NAME]
        ends = [*found["starts"].tolist(), self._question.steps.stop]
        self.segments = [range(a, b) for a, b in pairwise(ends)]
        asked, most = int(found["most"]), self._holds
        self.chunks = self._cut(asked)
        if most < asked:
            raise InputError(
                f"{parts.path} has the work divided into chunks of {asked} test examples, "
                f"and the memory given holds {most}.\n"
                "1. Give as much as before: memory=, --memory.\n"
                "2. To begin anew, remove that folder."
            )

    def together(self, processes: int) -> list[list[tuple[slice, Examples]]]:
        """Return which chunks a process walks backwards with at once: the training side is shared.

        Args:
            processes: Among how many the chunks are divided.
        """
        held = max(1, self._holds // len(self.chunks[0][1]))
        count = min(held, -(-len(self.chunks) // processes))
        return [self.chunks[k : k + count] for k in range(0, len(self.chunks), count)]

    @cached_property
    def _holds(self) -> int:
        """How many test examples the memory of a process holds at once."""
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
        return self._run.chunks.of(self._question.train_ids, "train", most=BLOCK)
