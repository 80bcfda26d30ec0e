"""Whether a run reproduces, on several processes: each takes some windows of steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from replay.processes.group import Done, Group
from replay.progress import Progress
from replay.session.bound_run import BoundRun
from replay.session.grid import segments
from replay.session.verification import windows_of
from replay.steps.verify import NotVerified, Verification, verified

_LISTS = ("proved", "unproved", "missed", "drift", "shows")


def compared_together(
    run: BoundRun, steps: range, sample: int | None, group: Group, bars: Progress
) -> Verification | None:
    """Compare some of the steps; return what all found on the process that leads, else None.

    Args:
        run: The run.
        steps: Consecutive steps.
        sample: So many of them, drawn at random, the same each time; None is all.
        group: The processes.
        bars: Where the process that leads shows how far all are.

    Raises:
        NotVerified: Names the first step that does not reproduce; on the process that leads.
    """
    chosen, windows = windows_of(steps, sample)
    if sample is None:
        windows = segments(run.states, steps, group.size)
    done = group.shows(bars.task(f"{group.size} processes", len(chosen)))
    for window in windows:
        if group.claims(f"steps from {window.start}"):
            group.tell(_name(window), _found(run, window, done))
    if not group.ended(done):
        return None
    return _joined(run, chosen, [(window, group.told(_name(window))) for window in windows])


def _found(run: BoundRun, window: range, done: Done) -> dict[str, Any]:
    """Return what comparing a window finds, as JSON has it."""
    splits, error = run.rule is not None, ""
    tape = run.tape(window, Progress(enabled=False), allow_mismatch=False, splits=splits)
    try:
        found = verified([tape], run.states, window, splits=splits, advance=done)
    except NotVerified as mismatch:
        found, error = mismatch.found, str(mismatch)
    states = run.states.found(window)
    return {
        "count": len(found.steps),
        "outside": [[t, factor] for t, factor in found.scaled_outside.items()],
        "deviation": found.deviation,
        "finding": found.finding,
        "error": error,
        "states": {name: states[name].tolist() for name in states},
    }


def _joined(
    run: BoundRun, chosen: Any, windows: list[tuple[range, dict[str, Any]]]
) -> Verification:
    """Return what was found of all windows, up to the first step that does not reproduce."""
    unsplit = None if run.rule is not None else str(run.log.metadata["update_rule"])
    found = Verification(chosen[:0], {}, unsplit, None, 0.0, chosen)
    for _, told in windows:
        states = {name: np.array(value) for name, value in told["states"].items()}
        if states:
            run.states.adopt(states | {"shows": np.array(told["states"]["shows"], dtype=np.uint8)})
        found = replace(
            found,
            steps=chosen[: len(found.steps) + told["count"]],
            scaled_outside=found.scaled_outside | dict(told["outside"]),
            deviation=max(found.deviation, told["deviation"]),
            finding=told["finding"],
            proof=run.states.proof(),
        )
        if told["error"]:
            raise NotVerified(told["error"], found)
    return found


def _name(window: range) -> str:
    return f"steps {window.start}-{window.stop}"
