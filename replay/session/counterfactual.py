"""Takes the counterfactual runs that are asked for; each is kept until the result is on file."""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replay.counterfactual.runs import Runs, Table
from replay.counterfactual.stacks import seconds, stacked
from replay.counterfactual.stacks import taken as taken_runs
from replay.processes.alone import Alone
from replay.processes.group import Group
from replay.processes.launch import at_once
from replay.progress import Progress
from replay.results.counterfactual import Counterfactual
from replay.results.output import check_free, inputs_of
from replay.results.part_folder import parts_of, remove_parts
from replay.results.parts import Parts
from replay.results.variables import COUNTERFACTUAL
from replay.session.alternatives import Alternatives
from replay.session.bound_run import BoundRun
from replay.session.counterfactual_runs import runs_of
from replay.session.estimate import Cost, peak_bytes
from replay.session.going_on import THREADS
from replay.session.provenance import measured_value, provenance
from replay.session.workers import Work, taken_apart
from tracer.errors import PrecisionWarning

_VALUES, _SAVED = "values", "saved"
_TIMED = 50  # steps, at most
_LIMITS = (
    "the run clipped gradients to a norm that varies, so the limit is unknown at steps that were "
    "not clipped; changed gradients are not clipped there."
)


def taken(
    run: BoundRun,
    asked: Alternatives,
    shown: Progress,
    out: Path | None,
    *,
    overwrite: bool,
    workers: int,
    group: Group | Alone,
) -> Counterfactual:
    """Take the runs that are asked for.

    Args:
        run: The run.
        asked: The question.
        shown: Where progress is shown.
        out: Where the result goes, and beside it, until then, each finished run.
        overwrite: Whether it may replace a file.
        workers: On how many processes of this one's.
        group: The processes of the job; each takes some of the runs.

    Raises:
        MismatchError: The run, taken again without a change, is not the run.
    """
    if out is not None and group.leads:
        facts = {"log": str(run.log.path), "task": str(run.log.metadata.get("task") or "")}
        check_free(out, COUNTERFACTUAL, overwrite=overwrite, inputs=inputs_of(facts))
    runs = runs_of(run, asked)
    starts = [runs.start(change) for change in asked.changes]
    began = runs.begin(min(starts))
    runs.advance = shown.task("the run as it was, steps", len(run.log) - began)
    baseline = runs.walk()
    place = None if out is None else parts_of(out)
    with group.agreeing():
        parts = Parts(place, _question(run, asked, baseline))
    with parts:
        _take(run, runs, asked, parts, shown, workers, group)
        if not group.leads:
            assert out is not None
            group.told(_SAVED)
            return Counterfactual.load(out)
        found = _result(run, asked, runs, parts)
        if out is not None:
            found.save(out, overwrite=overwrite)
    if out is not None:
        remove_parts(out)
        group.tell(_SAVED, True)
    return found


def _take(
    run: BoundRun,
    runs: Runs,
    asked: Alternatives,
    parts: Parts,
    shown: Progress,
    workers: int,
    group: Group | Alone,
) -> None:
    """Take the runs that are missing, in the order in which they leave the run."""
    starts, total = [runs.start(change) for change in asked.changes], asked.marks[-1]
    todo = [some for some in stacked(run.log, starts) if not all(_part(n) in parts for n in some)]
    count, steps = sum(map(len, todo)), sum(total - starts[n] for some in todo for n in some)
    most = max(map(len, todo), default=1)
    together = f", up to {most} together" if most > 1 else ""
    runs.advance = group.shows(shown.task(f"{count} counterfactual runs{together}, steps", steps))
    if workers == 1 or not todo:
        for some in todo:
            if group.claims(f"runs from {some[0]}"):
                _keep(parts, some, taken_runs(runs, [asked.changes[number] for number in some]))
        if group.ended(runs.advance):
            parts.refresh()
        return
    for some, values in taken_apart(Work.of(run, asked, runs), todo, workers):
        _keep(parts, some, values)
        for _ in range(sum(total - starts[number] for number in some)):
            runs.advance()


def _keep(parts: Parts, numbers: list[int], values: list[Table]) -> None:
    for number, table in zip(numbers, values, strict=True):
        if _part(number) not in parts:
            parts.add(_part(number), {_VALUES: table})


def _part(number: int) -> str:
    return f"run {number}"


def estimated_runs(run: BoundRun, asked: Alternatives, workers: int) -> Cost:
    """Return what taking the runs will cost, about, from some timed steps of one of them.

    Each process goes along the run itself once, to the last step at which a run leaves it. All
    share the processors of this machine.
    """
    runs = runs_of(run, asked)
    total, starts = len(run.log), [runs.start(change) for change in asked.changes]
    began = runs.begin(min(starts))
    step, values = runs.timed(asked.changes[starts.index(min(starts))], _TIMED)
    stacks = stacked(run.log, starts)
    whole = seconds(runs, [asked.changes[n] for n in stacks[0]], _TIMED) if stacks[0][1:] else None
    each = step if whole is None else whole / len(stacks[0])
    along, count = total - began, min(workers, len(stacks))
    taking = step * along * count + each * sum(total - start for start in starts)
    beside = at_once(count, torch.get_num_threads())
    marks = len(asked.marks) * (1 + sum(start < total for start in starts) / beside)
    table = 8 * len(asked.test_ids) * len(asked.marks) * len(starts)
    held = peak_bytes() * (1 if count == 1 else 1 + count)
    took = step * along + taking / beside + values * marks
    return Cost(took, held + table, table, torch.get_num_threads())


def _question(run: BoundRun, asked: Alternatives, baseline: Table) -> dict[str, Any]:
    """Return what must be the same for a job to go on."""
    scales = [[list(c.scale), list(c.scale.values()), c.renormalise] for c in asked.changes]
    return {
        "format": "tracin-counterfactual-parts 2",
        "run": str(run.log.metadata["run_uuid"]),
        "test examples": asked.test_ids,
        "choice of runs": zlib.crc32(json.dumps([asked.protocol, scales]).encode()),
        "choice of states": asked.marks,
        "version of torch": str(torch.__version__),
        THREADS: torch.get_num_threads(),
        "device": str(run.models.device),
        "set of test values": zlib.crc32(baseline.tobytes()),
    }


def _result(run: BoundRun, asked: Alternatives, runs: Runs, parts: Parts) -> Counterfactual:
    values = np.stack([parts[_part(n)][_VALUES] for n in range(len(asked.changes))])
    missed = {"allow_mismatch": int(asked.allow_mismatch)}
    if runs.mismatch is not None:
        missed["first_step_not_proved"] = runs.mismatch
    value = measured_value(run.task)
    facts = provenance(run, value, **asked.protocol, **missed)
    if runs.clips.varies:
        warnings.warn(_LIMITS, PrecisionWarning, stacklevel=4)
    diverged = np.flatnonzero(np.isnan(values).any((1, 2)))
    if len(diverged):
        warnings.warn(
            f"{len(diverged)} counterfactual runs diverged, the first is number {diverged[0]}: a "
            "loss became NaN or infinite, and their values from there on are NaN.",
            PrecisionWarning,
            stacklevel=4,
        )
    changes = [dict(change.scale) for change in asked.changes]
    return Counterfactual(asked.test_ids, changes, asked.marks, values, runs.baseline, facts)
