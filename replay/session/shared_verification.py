"""Whether a run reproduces, on several processes: each takes some windows of steps.

A step that reproduces is a part on file, whatever window it was asked in.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from replay.processes.alone import Done
from replay.processes.group import Group
from replay.progress import Progress
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.segments import left, whole_segments
from replay.session.verification import windows_of
from replay.steps.tape import Tape
from replay.steps.verify import NotVerified, Verification, verified
from tracer.errors import MismatchError


def compared_together(
    run: BoundRun, steps: range, sample: int | None, group: Group, parts: Parts, bars: Progress
) -> Verification | None:
    """Compare some of the steps; return what all found on the process that leads, else None.

    Args:
        run: The run.
        steps: Consecutive steps.
        sample: So many of them, drawn at random, the same each time; None is all.
        group: The processes.
        parts: What is finished.
        bars: Where the process that leads shows how far all are.

    Raises:
        NotVerified: Names the first step that does not reproduce; on the process that leads.
    """
    chosen, windows = windows_of(steps, sample)
    if sample is None:
        windows = whole_segments(run, steps)
    with group.agreeing():
        if group.leads:
            _recognise(run, parts)
    missing = sum(_part(t) not in parts for t in chosen)
    done = group.shows(bars.task(group.counted, missing))
    for window in windows:
        if group.claims(f"steps from {window.start}"):
            _compare(run, window, group, parts, done)
    if not group.ended(done):
        return None
    parts.refresh()
    return _joined(run, chosen, windows, group, parts)


def _recognise(run: BoundRun, parts: Parts) -> None:
    """Raise InputError if the first step on file, taken again, is not what it was."""
    t = next((t for t in range(len(run.log)) if _part(t) in parts), None)
    if t is None:
        return
    tape, again = _tape(run, range(t, t + 1)), -1.0
    with suppress(MismatchError):
        [*tape.checks()]
        again = tape.factors.deviations.get(t, 0.0)
    if again != float(parts[_part(t)]["deviation"]):
        raise parts.other("set of gradients")


def _tape(run: BoundRun, window: range) -> Tape:
    splits = run.rule is not None
    return run.tape(window, Progress(enabled=False), allow_mismatch=False, splits=splits)


def _compare(run: BoundRun, window: range, group: Group, parts: Parts, done: Done) -> None:
    """Put on file which steps of a window reproduce; tell the others of one that does not."""
    for rest in left(run, window, [t for t in window if _part(t) not in parts]):
        try:
            _compare_all(run, rest, parts, done)
        except NotVerified as error:
            states = run.states.found(range(rest.start + len(error.found.steps), rest.stop))
            told = {
                "error": str(error),
                "finding": error.found.finding,
                "deviation": error.found.deviation,
                "states": {name: values.tolist() for name, values in states.items()},
            }
            group.tell(_window(window), told)
            return


def _compare_all(run: BoundRun, steps: range, parts: Parts, done: Done) -> None:
    """Put on file which of some steps reproduce, up to one that does not."""
    tape, compared = _tape(run, steps), iter(steps)

    def keep() -> None:
        t = next(compared)
        if _part(t) in parts:
            return  # it leads to those that are missing
        factors = tape.factors
        scaled, gap = factors.inferred.get(t, np.nan), factors.deviations.get(t, 0.0)
        numbers = {"scaled": np.array(scaled), "deviation": np.array(gap)}
        parts.add(_part(t), {**numbers, **run.states.found(range(t, t + 1))})
        done()

    verified([tape], run.states, steps, splits=tape.splits, advance=keep)


def _joined(
    run: BoundRun, chosen: Sequence[int], windows: list[range], group: Group, parts: Parts
) -> Verification:
    """Return what was found of all steps, up to the first one that does not reproduce."""
    unsplit = None if run.rule is not None else str(run.log.metadata["update_rule"])
    scaled, deviation = dict[int, float](), 0.0
    count = next((k for k, t in enumerate(chosen) if _part(t) not in parts), len(chosen))
    for t in chosen[:count]:
        found = parts[_part(t)]
        run.states.adopt(found)
        deviation = max(deviation, float(found["deviation"]))
        if not np.isnan(found["scaled"]):
            scaled[t] = float(found["scaled"])
    proof = run.states.proof()
    whole = Verification(chosen[:count], scaled, unsplit, proof, deviation, chosen)
    if count == len(chosen):
        return whole
    told = group.told(_window(next(some for some in windows if chosen[count] in some)))
    _adopt(run, told["states"])
    deviation = max(deviation, told["deviation"])
    proof, finding = run.states.proof(), told["finding"]
    error = replace(whole, proof=proof, deviation=deviation, finding=finding)
    raise NotVerified(told["error"], error)


def _adopt(run: BoundRun, told: dict[str, Any]) -> None:
    states = {name: np.array(values) for name, values in told.items()}
    if states:
        run.states.adopt(states | {"shows": np.array(told["shows"], dtype=np.uint8)})


def _part(t: int) -> str:
    return f"step {t}"


def _window(steps: range) -> str:
    return f"steps {steps.start}-{steps.stop}"
