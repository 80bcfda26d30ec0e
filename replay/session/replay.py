"""Replay: a log bound to a task, and what can be asked of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from replay.arguments import flag
from replay.names import COUNTS
from replay.progress import Progress
from replay.results.checkpoint_sweep import CheckpointSweep
from replay.results.influence import Influence
from replay.results.self_influence import SelfInfluence
from replay.session.checkpoint_sweep import METHODS, chosen_checkpoints, swept
from replay.session.choices import Window, known_ids
from replay.session.estimate import Cost, estimated
from replay.session.inspection import Inspection
from replay.session.opening import bound
from replay.session.question import Asked, Exact, Question
from replay.session.scoring import answered, measured_drops, settle
from replay.session.self_influence import SelfQuestion, self_influence, settle_self
from replay.session.truth import GroundTruth
from replay.task import Task, described, example_ids, parse_test_ids
from tracer.records import ID
from tracer.rules.rule import UpdateRule

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on


class Replay(GroundTruth, Inspection):
    """A run log bound to its task.

    Args:
        log: Path of the log.
        task: The task; default: the one that the log names.
        device: Where to compute; default: the CPU.
        dtype: ``torch.float64`` or ``"float64"`` computes everything in float64; default: gradients
            in the run's own dtype.
        values: ``"float64"``, or ``"model"`` to take values of ``φ`` in the model's dtype.
        memory: Budget for gradients and activations, beyond the copies of the model, one pass over
            a training batch, some 15 vectors of the model's size that a step is made of, 16 states
            of a small model, and the tables of the result: 8 bytes for each method, test and
            training example.
        audit: Passes between proofs of the per-example gradients; 1 proves every pass.
        allow_tf32: Let a GPU round products to 10 bits.
        match_environment: Take the run's number of threads and its oneDNN setting.
        threads: How many to compute with; default: the faster of one and torch's number, timed on
            the first step. It decides the last bits of results, which say it.
        announce: Told which file a task named by the log is loaded from.
        rules: How steps of other optimizers are split, ``{"Lion": MyRule()}``: by the name of the
            optimizer's class, with its module or without, a ``replay.UpdateRule``.

    Raises:
        LogError: The log cannot be read or holds no step.
        TaskError: There is no task, or its model does not fit the log.
        InputError: This machine cannot compute there, or another argument cannot be used.
    """

    def __init__(
        self,
        log: str | Path,
        task: Task | str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        values: str = "float64",
        memory: int | str = "2GiB",
        audit: int = 100,
        allow_tf32: bool = False,
        match_environment: bool = False,
        threads: int | None = None,
        announce: Callable[[str], None] | None = None,
        rules: Mapping[str, UpdateRule] | None = None,
    ) -> None:
        self._run = bound(
            log,
            task,
            device=device,
            dtype=dtype,
            values=values,
            memory=memory,
            audit=audit,
            allow_tf32=allow_tf32,
            match_environment=match_environment,
            threads=threads,
            announce=announce,
            rules=rules,
        )
        self.log, self.task = self._run.log, self._run.task

    def __repr__(self) -> str:
        sides = (
            f"{len(example_ids(self.task.train))} training and {len(example_ids(self.task.test))}"
        )
        return f"<Replay of {self.log!r} with {sides} test examples>"

    def parse_test_ids(self, lines: Iterable[str]) -> list[ID]:
        """Return the test IDs of an ``ids.txt``, in its order; see ``replay.task``."""
        return parse_test_ids(lines, self.task.test)

    def describe_train(self, identity: ID) -> str | None:
        """Return ``task.show`` of a training example, if it gives text."""
        return described(self.task, self.task.train, identity)

    def describe_test(self, identity: ID) -> str | None:
        """Return ``task.show`` of a test example, if it gives text."""
        return described(self.task, self.task.test, identity)

    def drops(self, test_ids: Sequence[ID], *, progress: bool = True) -> NDArray[np.float64]:
        """Return ``φ(w_t; β_t) − φ(w_{t+1}; β_{t+1})``, float64 ``(T, m)``, for any optimizer.

        Args:
            test_ids: m test examples.
            progress: Show progress on stderr.
        """
        test_ids = known_ids(test_ids, self.task.test, "test")
        with self._run.computing(), Progress(flag("progress", progress)) as bars:
            return measured_drops(self._run, test_ids, bars)

    def influence(
        self, test_ids: Sequence[ID], *, progress: bool = True, **asked: Unpack[Asked]
    ) -> Influence:
        """Compute the influence of training examples on test examples.

        Positive scores are proponents: they lowered ``φ``.

        Args:
            test_ids: m test examples: the rows.
            progress: Show progress on stderr.
            **asked: Any of the following.

        Keyword Args:
            methods: Any of ``"tracin"``, ``"ideal"``, ``"tracincp"``, ``"tracin-sgd"``, the paper's
                formula whatever the optimizer, and ``"unrolled"``, the derivative of what would
                have happened; default: the first three.
            checkpoints: For ``tracincp``: a number, a list of steps, ``"epochs"``, ``"all"``;
                default: 10.
            train_ids: N training examples: the columns; default: all of ``task.train``.
            steps: A window of consecutive steps, ``slice(a, b)`` or ``"a:b"``: their moves and
                visits alone; what the optimizer remembers of earlier visits is history.
            parameters: Patterns of parameter names, like ``"head.*"``: only their part of every
                product; the parts of disjoint patterns add up to the whole.
            ideal_tolerance: How far each split of ``ideal`` may be off, relative to its norm; None
                takes no gradients between the ends of a step.
            by: Scores by period as well: ``"epoch"``, ``"step"`` or a number of steps. A visit's
                credit is its step's, whenever an optimizer's memory moved the parameters; a
                checkpoint's is the period's that led to it. Scores are the sums of the periods.
            allow_mismatch: Go on where a step does not reproduce; what differs is ``rounding``.

        Raises:
            InputError: An ID, method, checkpoint, step or pattern is unknown.
            UnsupportedRuleError: A step's update rule cannot be split.
            GradientError: A layer or a buffer cannot be differentiated as ``unrolled`` needs.
            MismatchError: A replayed step does not reproduce the logged one.
            NonFiniteError: A loss or a gradient is NaN or infinite.
            TaskError: The task's functions or data do not fit the log.
        """
        question = Question.of(self.log, self.task, test_ids, **asked)
        settle(self._run, question)
        with self._run.computing(), Progress(flag("progress", progress)) as bars:
            return answered(self._run, question, bars)

    def estimate(self, test_ids: Sequence[ID], **asked: Unpack[Asked]) -> Cost:
        """Return the time and memory that ``influence`` with the same arguments will take, about.

        With them, comparing the methods (``Influence.agreement``). A few steps of the run are
        replayed and timed; nothing is written.

        Args:
            test_ids: m test examples.
            **asked: As for ``influence``, with the same errors.
        """
        return estimated(self._run, Question.of(self.log, self.task, test_ids, **asked))

    def checkpoint_sweep(
        self,
        test_ids: Sequence[ID],
        *,
        counts: Sequence[int] = COUNTS,
        placements: str | Sequence[str] | None = None,
        progress: bool = True,
        **asked: Unpack[Exact],
    ) -> CheckpointSweep:
        """Compute how far ``tracincp`` is from the exact scores, by its checkpoints.

        One pass over the run serves every choice; each has a table of scores in memory.

        Args:
            test_ids: m test examples.
            counts: Numbers of checkpoints.
            placements: Any of ``"even"``, as ``checkpoints=`` has them, ``"epochs"`` (some of their
                ends), ``"early"`` and ``"late"`` (a quarter of the run), ``"rate"`` (equal sums
                of learning rates between them); default: all that the run has.
            progress: Show progress on stderr.
            **asked: ``train_ids``, ``parameters``, ``ideal_tolerance``, ``allow_mismatch``: as for
                ``influence``, with the same errors.
        """
        choices = chosen_checkpoints(self.log, counts, placements)
        states = sorted({step for one in choices for step in one.steps})
        question = Question.of(
            *(self.log, self.task, test_ids), methods=METHODS, checkpoints=states, **asked
        )
        settle(self._run, question)
        with self._run.computing(), Progress(flag("progress", progress)) as bars:
            return swept(self._run, question, choices, bars)

    def self_influence(
        self,
        *,
        train_ids: Sequence[ID] | None = None,
        steps: Window | None = None,
        checkpoints: int | str | Sequence[int] | None = None,
        by: str | int | None = None,
        allow_mismatch: bool = False,
        progress: bool = True,
    ) -> SelfInfluence:
        """Compute what each training example's visits did to the example itself.

        The plain loss of each example stands beside it: what a score is worth is known by that.

        Args:
            train_ids: N training examples; default: all of ``task.train``.
            steps: As for ``influence``, with the same errors.
            checkpoints: Likewise: the diagonal of ``tracincp`` at these; None leaves it out.
            by: Likewise.
            allow_mismatch: Likewise.
            progress: Likewise.
        """
        question = SelfQuestion.of(
            self.log,
            self.task,
            train_ids=train_ids,
            steps=steps,
            checkpoints=checkpoints,
            by=by,
            allow_mismatch=allow_mismatch,
        )
        settle_self(self._run, question)
        with self._run.computing(), Progress(flag("progress", progress)) as bars:
            return self_influence(self._run, question, bars)
