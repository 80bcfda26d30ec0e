"""Self-influence of a run: one pass over its steps and, if asked, over some checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.arguments import flag
from replay.evaluate.chunks import BLOCK
from replay.evaluate.test_side import Examples
from replay.gradients.forms import products
from replay.methods import tracincp
from replay.methods.self_influence import Sums, visits
from replay.progress import Progress
from replay.results.self_influence import SelfInfluence
from replay.session.bound_run import BoundRun
from replay.session.choices import Window, known_ids, window
from replay.session.periods import Periods
from replay.session.provenance import as_in_the_run, provenance
from replay.session.scoring import proved
from replay.states.checkpoints import checkpoint_at, chosen_checkpoints
from replay.task import Task, example_ids
from tracer.log.read.run_log import RunLog
from tracer.records import ID

Table = NDArray[Any]
_OWN_LOSS = "example's own training loss", "task.loss"


@dataclass(frozen=True)
class SelfQuestion:
    """What ``Replay.self_influence`` is asked, checked.

    Attributes:
        train_ids: N training examples.
        steps: The window.
        checkpoints: States of the checkpoint heuristic; empty without it.
        periods: Into which scores are divided; one if they are not.
        allow_mismatch: Go on where a step does not reproduce.
    """

    train_ids: list[ID]
    steps: range
    checkpoints: list[int]
    periods: Periods
    allow_mismatch: bool

    @classmethod
    def of(
        cls,
        log: RunLog,
        task: Task,
        *,
        train_ids: Sequence[ID] | None,
        steps: Window | None,
        checkpoints: int | str | Sequence[int] | None,
        by: str | int | None,
        allow_mismatch: bool,
    ) -> SelfQuestion:
        """Check the arguments of ``Replay.self_influence``.

        Raises:
            InputError: One of them cannot be used with this run and task.
        """
        chosen = example_ids(task.train) if train_ids is None else train_ids
        points = [] if checkpoints is None else chosen_checkpoints(log, checkpoints)
        looked_at = window(steps, len(log))
        return cls(
            train_ids=known_ids(chosen, task.train, "training"),
            steps=looked_at,
            checkpoints=points,
            periods=Periods.of(log, by, looked_at, points),
            allow_mismatch=flag("allow_mismatch", allow_mismatch),
        )

    def blocks(self, run: BoundRun) -> list[Examples]:
        """Return the examples in chunks, if there are checkpoints to evaluate them at."""
        return run.chunks.of(self.train_ids, "train", most=BLOCK) if self.checkpoints else []

    @property
    def facts(self) -> dict[str, str | int]:
        """The choices, as attributes of the result."""
        return {
            "window": f"{self.steps.start}:{self.steps.stop}",
            "checkpoints": " ".join(map(str, self.checkpoints)),
            **({"by": self.periods.by} if self.periods.by else {}),
            "allow_mismatch": int(self.allow_mismatch),
        }


def settle_self(run: BoundRun, question: SelfQuestion) -> None:
    """Choose the number of threads, as ``settle`` does."""
    beginning = replace(question, steps=question.steps[:1], checkpoints=[], periods=Periods())

    def begin() -> None:
        with run.computing(), Progress(enabled=False) as shown:
            self_influence(run, beginning, shown)

    run.choose_threads(begin, len(question.steps), 0)


def self_influence(run: BoundRun, question: SelfQuestion, shown: Progress) -> SelfInfluence:
    """Return what each training example's visits did to the example itself."""
    steps, periods = question.steps, question.periods
    sums = Sums(question.train_ids, len(periods))
    tape = run.tape(steps, shown, allow_mismatch=question.allow_mismatch)
    advance = shown.task("self-influence", len(steps))
    for replayed in tape.forwards():
        assert replayed.trained is not None
        period = periods.of_step(replayed.transition.step.index)
        sums.add(replayed.trained.ids, visits(replayed, run.task, run.models), period)
        advance()
    points = np.zeros((len(periods), len(question.train_ids)))
    blocks = question.blocks(run)
    advance = shown.task(tracincp.METHOD.name, len(question.checkpoints) * len(blocks))
    for k in question.checkpoints:
        points[periods.of_state(k)] += at_checkpoint(run, k, blocks, advance)
    return finished(run, question, sums, points, tape.factors.scaled(steps))


def finished(
    run: BoundRun, question: SelfQuestion, sums: Sums, points: Table, scaled: int
) -> SelfInfluence:
    """Return the result of sums that are full.

    Args:
        run: The run.
        question: What was asked.
        sums: Of visits.
        points: Of checkpoints, ``(P, N)``.
        scaled: At how many steps gradients were scaled outside.
    """
    mismatch, periods = question.allow_mismatch, question.periods
    found = {"steps_scaled_outside": scaled, **proved(run.states, allow_mismatch=mismatch)}
    choices = question.facts | as_in_the_run(run.rule)
    choices["threads_chosen"] = run.computing.threads.why
    facts = provenance(run, _OWN_LOSS, **choices, **found)
    diagonal = {tracincp.METHOD.name: points} if question.checkpoints else {}
    whole, parts = _scores(sums.tables | diagonal, sums.visits)
    return SelfInfluence(
        question.train_ids,
        whole,
        sums.visits.sum(0),
        facts,
        by_period=parts if periods.by else {},
        visits_by_period=sums.visits.T if periods.by else np.zeros((0, 0), dtype=np.int64),
        periods=list(periods.labels),
    )


def at_checkpoint(
    run: BoundRun, k: int, blocks: list[Examples], advance: Callable[[], None]
) -> Table:
    """Return a term of the checkpoint heuristic's diagonal, ``η_k ‖∇ℓ(w_k, z)‖²``, ``(N,)``."""
    point, found = checkpoint_at(run.states, k), []
    for block in blocks:
        turns = tracincp.gradients(point, block)
        parts = (products.weighted_squares(one, dict(scale)) for scale, one in turns)
        found.append(tracincp.sum_of(parts).cpu().numpy())
        advance()
    return np.concatenate(found)


def _scores(tables: dict[str, Table], visits: Table) -> tuple[dict[str, Table], dict[str, Table]]:
    """Return scores in all, ``(N,)``, and by period, ``(N, P)``; losses are means over visits."""
    parts = {name: table.T for name, table in tables.items()}
    whole = {name: table.sum(-1) for name, table in parts.items()}
    with np.errstate(invalid="ignore"):  # 0 / 0: never visited
        parts["loss"] = parts["loss"] / visits.T
        whole["loss"] = whole["loss"] / visits.sum(0)
    return whole, parts
