"""Answers a question: fills the score tables, step by step and at the checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from replay.evaluate.chunks import BLOCK, placed
from replay.evaluate.run_examples import RunExamples
from replay.evaluate.state import States
from replay.evaluate.test_side import Examples
from replay.gradients.forms.per_example import PerExample
from replay.path.test_values import drops
from replay.progress import Progress
from replay.results.influence import Influence
from replay.session.bound_run import BoundRun
from replay.session.provenance import as_in_the_run, measured_value, provenance
from replay.session.question import Question
from replay.session.run_pass import RunPass
from replay.session.score_tables import ScoreTables
from replay.states.checkpoints import Checkpoint, checkpoint_at
from replay.states.environment import remedy
from replay.steps.checking import require_small
from replay.task import Task
from replay.vectors.workspace import MOST, room
from tracer.errors import InputWarning, PrecisionWarning
from tracer.records import ID

_SOME, _MANY = 17, 64  # a prime: other sizes are seldom its multiples, so that graphs look alike


def measured_drops(run: BoundRun, test_ids: list[ID], shown: Progress) -> NDArray[np.float64]:
    """Return every step's measured drop, float64 ``(T, m)``."""
    chunks = run.chunks.of(test_ids, "test")
    advance = shown.task("drops", len(chunks) * len(run.log))
    columns = []
    for chunk in chunks:
        rows = []
        for drop in drops(run.states, chunk):
            rows.append(drop.measured.numpy())
            advance()
        columns.append(np.stack(rows))
    proved(run.states, allow_mismatch=False)
    return np.concatenate(columns, 1)


def proved(states: States, *, allow_mismatch: bool) -> dict[str, int | float]:
    """Return what a result says of states that were computed.

    Raises:
        MismatchError: Rounding does not explain how far some are from the run's.

    Warns:
        PrecisionWarning: Some are not the run's to the last bit.
    """
    proof = states.proof()
    if proof is not None and not allow_mismatch:
        require_small(states.log.path, proof)
    if proof is not None and proof.unproved:
        warnings.warn(f"{proof}{remedy(proof.causes)}", PrecisionWarning, stacklevel=2)
    return {} if proof is None else proof.facts


def answered(
    run: BoundRun, question: Question, shown: Progress, tables: ScoreTables | None = None
) -> Influence:
    """Return the answer to a question; ``tables`` are filled, if they are given."""
    return Scoring(run, question, shown, tables or ScoreTables(question)).influence()


def finished(
    run: BoundRun, question: Question, tables: ScoreTables, scaled: int | None
) -> Influence:
    """Return the result of tables that are full.

    Args:
        run: The run.
        question: What was asked.
        tables: All scores and terms.
        scaled: At how many steps gradients were scaled outside; None if none was looked at.
    """
    found: dict[str, int | float] = {} if scaled is None else {"steps_scaled_outside": scaled}
    found |= proved(run.states, allow_mismatch=question.allow_mismatch)
    frozen = as_in_the_run(run.rule) if question.divides else {}
    value, choices = measured_value(run.task), question.facts | frozen
    why = {"threads_chosen": run.computing.threads.why}
    result = tables.influence(provenance(run, value, **choices, **found, **why))
    if _moves(run, question):
        _warn_of_nothing(result, run.task)
    return result


def _moves(run: BoundRun, question: Question) -> bool:
    """Return whether a weight had a learning rate at any step that counts."""
    states = run.states
    steps = {min(k, states.last - 1) for k in question.checkpoints if question.summing}
    steps |= set(question.steps if question.walking else ())
    return any(rate != 0 for t in steps for rate in states.step(t).learning_rates.values())


def tried(run: BoundRun, question: Question) -> None:
    """Answer a question to see how long it takes."""
    with run.computing(), Progress(enabled=False) as shown:
        answered(run, question, shown)


def settle(run: BoundRun, question: Question) -> None:
    """Choose the number of threads, once for a run, by answering the beginning of a question."""
    run.choose_threads(
        partial(tried, run, question.beginning), question.size, len(question.test_ids)
    )


def _warn_of_nothing(result: Influence, task: Task) -> None:
    """Warn if no score is other than 0: of a contrastive loss, an example alone has no others."""
    moved = any(terms["measured"].any() for terms in result.terms.values())
    if moved or any(scores.any() for scores in result.scores.values()):
        return
    name = "task.loss" if task.measure is None else "task.measure"
    warnings.warn(
        f"every score is 0: {name} of a test example never changes, nor has it a gradient.\n"
        "  1. If it compares the examples of a batch (a contrastive loss), an example that is "
        "measured alone has no others: give the task a measure=, a number of each example.\n"
        "  2. If the weights that moved have no part in it, this is right.",
        InputWarning,
        stacklevel=5,
    )


class Scoring:
    """The work on one question.

    Args:
        run: The run.
        question: What is asked.
        shown: Where progress is shown.
        tables: What is filled.
    """

    def __init__(
        self, run: BoundRun, question: Question, shown: Progress, tables: ScoreTables
    ) -> None:
        self._run, self._question, self._shown = run, question, shown
        self._tables = tables
        self._point = partial(checkpoint_at, run.states, names=question.names)
        self._blocks: list[Examples] = []
        self._done: set[int] = set()  # checkpoints

    def influence(self) -> Influence:
        """Do the work and return the result."""
        question = self._question
        scaled = self._walk() if question.walking else None
        rest = [k for k in question.checkpoints if k not in self._done]
        if rest:
            self._sum_up(rest)
        return finished(self._run, question, self._tables, scaled)

    def _walk(self) -> int:
        """Add every step, for each chunk of test examples; return how many were scaled outside.

        Gradients of test examples that fall on a checkpoint serve there, too.
        """
        question, walking = self._question, self._question.walking
        tape = self._run.tape(question.steps, self._shown, **question.tape)
        kept = 0 if tape.plain and question.names is None else question.vectors
        between = question.refines
        chunks = self._run.chunks.of(question.test_ids, "test", kept=kept, between=between)
        self._blocks = self._training(chunks) if question.summing else []
        name = " + ".join(method.name for method in walking)
        advance = self._shown.task(name, len(chunks) * len(question.steps))
        for rows, chunk in placed(chunks):
            for step in RunPass(tape, chunk, question).steps():
                self._tables.add_step(rows, step.index, step.ids, step.row())
                for k, gradients in step.snapshots.items():
                    self._add(self._point(k), rows, gradients, lambda: None)
                    self._done.add(k)
                advance()
        return tape.factors.scaled(question.steps)

    def _sum_up(self, checkpoints: list[int]) -> None:
        """Add the scores at some checkpoints, block by block."""
        chunks = self._run.chunks.of(self._question.test_ids, "test")
        self._blocks = self._training(chunks)
        name = " + ".join(method.name for method in self._question.summing)
        total = len(checkpoints) * len(chunks) * len(self._blocks)
        advance = self._shown.task(name, total)
        for k in checkpoints:
            point = self._point(k)
            if k == checkpoints[-1]:  # what is seen last is proven
                self._prove(point, chunks[0])
            for rows, chunk in placed(chunks):
                found = RunExamples(chunk, self._run.states)
                names = point.scale.keys()
                gradients = found.gradients(k, point.state, point.name, names=names)
                self._add(point, rows, gradients, advance)
                if not self._question.walking and k in self._question.ends:
                    values = found.values(k, point.state, point.name)
                    self._tables.add_values(k, rows, values.cpu().numpy())

    def _training(self, chunks: list[Examples]) -> list[Examples]:
        """Return training examples in blocks: their scores for a chunk stay in one workspace."""
        most = max(1, min(BLOCK, room(MOST) // len(chunks[0])))
        return self._run.chunks.of(self._question.train_ids, "train", most=most)

    def _prove(self, point: Checkpoint, chunk: Examples) -> None:
        """Prove how gradients are read at a checkpoint, on some examples where there are many.

        A plan that holds for some holds for all passes of the same graph; of any other, the pass
        itself is proven.
        """
        chunk.audit()
        for examples in (chunk, *self._blocks[:1]):
            if len(examples) > _MANY:
                examples.batches.begin_epoch(point.epoch)
                some = list(range(_SOME))
                examples.gradients(point.state, point.name, some, point.scale.keys())

    def _add(
        self, point: Checkpoint, rows: slice, gradients: PerExample, advance: Callable[[], None]
    ) -> None:
        """Add the scores of some test examples at one checkpoint."""
        for method in self._question.summing:
            assert method.score is not None
            for columns, scores in method.score(point, gradients, self._blocks):
                self._tables.add_scores(method.name, point.index, rows, columns, scores.numpy())
                advance()
