"""Whether a run reproduces, on several processes: each takes some windows of steps.

A step that reproduces is a part on file, whatever window it was asked in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from replay.processes.alone import Done
from replay.processes.group import Group
from replay.progress import Progress
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.going_on import recognise
from replay.session.grid import segments
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
        windows = segments(run.states, steps, group.size)
    with group.agreeing():
        if group.leads:
            _recognise(run, parts, windows[0].start)
    missing = sum(_part(t) not in parts for t in chosen)
    done = group.shows(bars.task(f"{group.size} processes", missing))
    for window in windows:
        if group.claims(f"steps from {window.start}"):
            _compare(run, window, group, parts, done)
    if not group.ended(done):
        return None
    parts.refresh()
    return _joined(run, chosen, windows, group, parts)


def _recognise(run: BoundRun, parts: Parts, t: int) -> None:
    """Raise InputError if a step's gradients are not those with which the job began."""
    tape = _tape(run, range(t, t + 1))
    try:
        [*tape.checks()]
    except MismatchError:  # said by whoever compares it
        return
    recognise(parts, "set of gradients", np.array(tape.factors.deviation))


def _tape(run: BoundRun, window: range) -> Tape:
    splits = run.rule is not None
    return run.tape(window, Progress(enabled=False), allow_mismatch=False, splits=splits)


def _compare(run: BoundRun, window: range, group: Group, parts: Parts, done: Done) -> None:
    """Put on file which steps of a window reproduce; tell the others of one that does not."""
    missing = [t for t in window if _part(t) not in parts]
    if not missing:
        return
    rest = range(missing[0], window.stop)
    tape, compared = _tape(run, rest), iter(rest)

    def keep() -> None:
        t = next(compared)
        if _part(t) in parts:
            return
        scaled, gap = tape.factors.inferred.get(t, np.nan), tape.factors.deviation
        numbers = {"scaled": np.array(scaled), "deviation": np.array(gap)}
        parts.add(_part(t), {**numbers, **run.states.found(range(t, t + 1))})
        done()

    try:
        verified([tape], run.states, rest, splits=tape.splits, advance=keep)
    except NotVerified as error:
        states = run.states.found(range(rest.start + len(error.found.steps), rest.stop))
        told = {
            "error": str(error),
            "finding": error.found.finding,
            "deviation": error.found.deviation,
            "states": {name: values.tolist() for name, values in states.items()},
        }
        group.tell(_window(window), told)


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
