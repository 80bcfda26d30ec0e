"""Self-influence on several processes: each takes segments of the run and some checkpoints."""

from __future__ import annotations

import numpy as np

from replay.methods.self_influence import Sums, visits
from replay.processes.alone import Done
from replay.processes.group import Group
from replay.progress import Progress
from replay.results.parts import Parts
from replay.results.self_influence import SelfInfluence
from replay.session.bound_run import BoundRun
from replay.session.going_on import recognise_losses
from replay.session.grid import TrainingBlocks
from replay.session.segments import left, whole_segments
from replay.session.self_influence import SelfQuestion, at_checkpoint, finished

_VALUES = "values"


def self_influence_together(
    run: BoundRun, question: SelfQuestion, group: Group, parts: Parts, bars: Progress
) -> SelfInfluence | None:
    """Do a part of the work; return the result on the process that leads, else None.

    Args:
        run: The run.
        question: What is asked.
        group: The processes.
        parts: What is finished.
        bars: Where the process that leads shows how far all are.
    """
    steps, points = question.steps, question.checkpoints
    blocks = TrainingBlocks(run, question.train_ids if points else [])
    with group.agreeing():
        if group.leads:
            recognise_losses(run, parts, steps.start)
    blocks.agree(group, parts)
    missing = [name for name in (*map(_step, steps), *map(_point, points)) if name not in parts]
    done = group.shows(bars.task(group.counted, len(missing)))
    for some in whole_segments(run, steps):
        if group.claims(f"steps from {some.start}"):
            _walk(run, question, some, parts, done)
    for k in points:
        if _point(k) not in parts and group.claims(_point(k)):
            values = at_checkpoint(run, k, blocks.chunks, lambda: None)
            parts.add(_point(k), {_VALUES: values, **run.states.found(range(run.states.last))})
            done()
    if not group.ended(done):
        return None
    parts.refresh()
    return _added_up(run, question, parts)


def _walk(run: BoundRun, question: SelfQuestion, steps: range, parts: Parts, done: Done) -> None:
    """Put on file what is missing of a segment."""
    how = {"allow_mismatch": question.allow_mismatch, "proven": question.steps}
    for window in left(run, steps, [t for t in steps if _step(t) not in parts]):
        tape = run.tape(window, Progress(enabled=False), **how)
        for replayed in tape.forwards():
            t = replayed.transition.step.index
            if _step(t) in parts:
                continue  # it leads to those that are missing
            found = run.states.found(range(t, t + 1))
            outside = {"outside": np.array(t in tape.factors.inferred)}
            parts.add(_step(t), {**visits(replayed, run.task, run.models), **outside, **found})
            done()


def _added_up(run: BoundRun, question: SelfQuestion, parts: Parts) -> SelfInfluence:
    sums, scaled = Sums(question.train_ids, len(question.periods)), 0
    points = np.zeros((len(question.periods), len(question.train_ids)))
    for t in question.steps:
        found = parts[_step(t)]
        run.states.adopt(found)
        sums.add(run.log.batch_ids(t), found, question.periods.of_step(t))
        scaled += bool(found["outside"])
    for k in question.checkpoints:
        run.states.adopt(parts[_point(k)])
        points[question.periods.of_state(k)] += parts[_point(k)][_VALUES]
    return finished(run, question, sums, points, scaled)


def _step(t: int) -> str:
    return f"step {t}"


def _point(k: int) -> str:
    return f"checkpoint {k}"
