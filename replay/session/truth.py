"""What would have happened: the part of ``Replay`` that takes the run again otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from replay.arguments import flag, place, whole
from replay.processes.alone import Alone
from replay.processes.group import here
from replay.progress import Progress
from replay.results.counterfactual import Counterfactual
from replay.session.alternatives import (
    LEAVE_ONE_OUT,
    Alternatives,
    Facts,
    left_out_one_by_one,
    random_subsets,
    scales_of,
)
from replay.session.bound_run import BoundRun
from replay.session.counterfactual import estimated_runs, taken
from replay.session.estimate import Cost
from replay.session.going_on import go_on
from tracer.records import ID

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

Scales = Mapping[ID, float] | Sequence[Mapping[ID, float]]


class Taking(TypedDict, total=False):
    """How runs are taken, whatever is asked; ``GroundTruth.counterfactual`` explains it."""

    renormalise: bool
    along: int | None
    allow_mismatch: bool
    out: str | Path | None
    overwrite: bool
    workers: int
    progress: bool


class GroundTruth:
    """Counterfactual runs along a log.

    Each has the run's order, micro-batches, random states, learning rates and denominators;
    BatchNorm and losses over pairs still see the examples that are removed.
    """

    _run: BoundRun

    def counterfactual(
        self,
        test_ids: Sequence[ID],
        *,
        remove: Sequence[Sequence[ID]] | None = None,
        scale: Scales | None = None,
        **how: Unpack[Taking],
    ) -> Counterfactual:
        """Take the run again with other weights of some training examples.

        Any optimizer that can be made again will do, and any log. A gradient that changes is
        clipped by its own norm.

        Args:
            test_ids: m test examples.
            remove: For each run, the training examples whose weights become 0.
            scale: Or what weights are multiplied by, by ID; a list for several runs.
            **how: Any of the following.

        Keyword Args:
            renormalise: Let a mean divide by the examples left, not by those of the run.
            along: Take values every so many steps as well.
            allow_mismatch: Go on where the run, taken again without a change, comes out
                otherwise; the values of that are the baseline then.
            out: Write the result there. Finished runs are kept beside it until then: a job that
                was killed goes on where it was when the same is asked again. Under torchrun the
                processes share the runs, and each returns the result.
            overwrite: Whether that may replace a file.
            workers: On how many processes; the result is the same, bit for bit. Each needs
                memory for a replay, and the task must have a name or be picklable.
            progress: Show progress on stderr; True by default.

        Raises:
            InputError: An ID or another argument cannot be used.
            MismatchError: The run, taken again without a change, is not the run to the last bit.
            UnsupportedRuleError: Its optimizer cannot be made again.
        """
        scales = scales_of(self._run.task, remove, scale)
        facts = {"protocol": "scale" if remove is None else "remove"}
        return self._taken(test_ids, scales, facts, **how)

    def leave_one_out(
        self,
        test_ids: Sequence[ID],
        train_ids: Sequence[ID] | None = None,
        **how: Unpack[Taking],
    ) -> Counterfactual:
        """Take the run again without each of some training examples.

        ``change`` is ``φ`` without the example less ``φ`` with it: positive = proponent.

        Args:
            test_ids: m test examples.
            train_ids: R training examples, a run each; default: all of ``task.train``.
            **how: As for ``counterfactual``, with the same errors.
        """
        scales = left_out_one_by_one(self._run.task, train_ids)
        return self._taken(test_ids, scales, {"protocol": LEAVE_ONE_OUT}, **how)

    def subsets(
        self,
        test_ids: Sequence[ID],
        *,
        count: int = 100,
        fraction: float = 0.5,
        seed: int = 0,
        train_ids: Sequence[ID] | None = None,
        **how: Unpack[Taking],
    ) -> Counterfactual:
        """Take the run again without random subsets of the training examples.

        Args:
            test_ids: m test examples.
            count: R, how many subsets.
            fraction: The share of the training examples that each run lacks.
            seed: Of the draw; a larger ``count`` begins with the same subsets.
            train_ids: The examples that are drawn from; default: all of ``task.train``.
            **how: As for ``counterfactual``, with the same errors.
        """
        scales, facts = random_subsets(self._run.task, train_ids, count, fraction, seed)
        return self._taken(test_ids, scales, facts, **how)

    def estimate_counterfactual(
        self,
        test_ids: Sequence[ID],
        *,
        remove: Sequence[Sequence[ID]] | None = None,
        scale: Scales | None = None,
        along: int | None = None,
        workers: int = 1,
    ) -> Cost:
        """Return the time and memory that such runs will take, about, from some timed steps.

        Args:
            test_ids: As for ``counterfactual``, with the same errors.
            remove: Likewise.
            scale: Likewise.
            along: Likewise.
            workers: Likewise.
        """
        run, scales = self._run, scales_of(self._run.task, remove, scale)
        how = {"renormalise": False, "along": along, "allow_mismatch": True}
        asked = Alternatives.of(run.log, run.task, test_ids, scales, {}, **how)
        with run.computing.again():
            return estimated_runs(run, asked, whole("workers", workers))

    def _taken(
        self,
        test_ids: Sequence[ID],
        scales: Sequence[Mapping[ID, float]],
        protocol: Facts,
        *,
        renormalise: bool = False,
        along: int | None = None,
        allow_mismatch: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
        workers: int = 1,
        progress: bool = True,
    ) -> Counterfactual:
        run, target = self._run, None if out is None else place("a result", out)
        how = {"renormalise": renormalise, "along": along, "allow_mismatch": allow_mismatch}
        asked = Alternatives.of(run.log, run.task, test_ids, scales, protocol, **how)
        replaces, count = flag("overwrite", overwrite), whole("workers", workers)
        go_on(run, target)
        with run.computing.again(), Progress(flag("progress", progress)) as bars:
            group = here() if target is not None else Alone()
            return taken(run, asked, bars, target, overwrite=replaces, workers=count, group=group)
