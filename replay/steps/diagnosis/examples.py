"""Other examples than the logged ones, or the same in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from replay.steps.diagnosis.case import Case, Cause, Vectors
from replay.task import Task, unknown_ids
from tracer.records import ID, MicroBatch, Step

_ANCHOR = "the-ids"


def another_order(case: Case) -> Cause | None:
    """The batch held the same examples, sorted or reversed."""
    orders: dict[str, Callable[[Sequence[ID]], list[ID]]] = {
        "sorted": lambda ids: sorted(ids, key=lambda one: (str(type(one)), one)),
        "reversed": lambda ids: list(reversed(ids)),
    }
    for how, arrange in orders.items():
        if case.fits(case.replayed(step=_with_ids(case.step, arrange))):
            return Cause(
                f"the batch of the run held these examples in another order ({how}, the step "
                "reproduces)",
                (
                    "Give the IDs in the order of the batch: with_ids(dataset) in the loader does;",
                    "or do not reorder the batch between the loader and the loss.",
                ),
                _ANCHOR,
            )
    return None


def shifted(case: Case) -> Cause | None:
    """The IDs count from another number."""
    for by in (1, -1):
        if case.fits(_if_known(case, case.task, _plus(case.step, by))):
            return Cause(
                f"the IDs are off by one (with {by:+d} added to each, the step reproduces)",
                (
                    "Log the keys of task.train: positions count from 0;",
                    "or give task.train as a mapping with the keys that were logged.",
                ),
                _ANCHOR,
            )
    return None


def of_another_step(case: Case) -> Cause | None:
    """The IDs are those of the batch before or after."""
    t = case.step.index
    for k, other in ((t, t - 1), (t, t + 1), (t + 1, t)):  # of the first step none may be logged
        if not (0 <= other < case.states.last and k < case.states.last):
            continue
        now = replace(case, now=case.states.transition(k), applied=case.applied if k == t else {})
        batches = _random_of(now.step, case.states.step(other))
        if now.fits(_if_known(now, case.task, replace(now.step, micro_batches=batches))):
            return Cause(
                f"the IDs are those of another batch (with those of step {other}, step {k} "
                "reproduces)",
                (
                    "Log the IDs of the batch that the loss was taken of, not of one fetched "
                    "earlier or later;",
                    "with_ids(dataset) in the loader keeps IDs and batch together.",
                ),
                _ANCHOR,
            )
    return None


def of_another_epoch(case: Case) -> Cause | None:
    """The data set drew its examples for the epoch before or after."""
    for by in (-1, 1):
        step = _in_epoch(case.step, by)
        if step is not None and case.fits(case.replayed(step=step)):
            return Cause(
                f"the data set drew these examples for epoch {step.epoch}, and optimizer.epoch was "
                f"{case.step.epoch} (for that epoch the step reproduces)",
                (
                    "Set optimizer.epoch before the loop over the loader begins, whose worker "
                    "processes fetch ahead;",
                    "or let the loader read the very data set that data= was given.",
                ),
                "random-augmentation",
            )
    return None


def of_two_epochs(case: Case) -> Cause | None:
    """The first of its micro-batches were drawn for the epoch before."""
    before, micros = _in_epoch(case.step, -1), case.step.micro_batches
    for k in range(1, len(micros) if before is not None else 1):
        assert before is not None
        mixed = (*before.micro_batches[:k], *micros[k:])
        if case.fits(case.replayed(step=replace(case.step, micro_batches=mixed))):
            return Cause(
                f"{k} of its {len(micros)} micro-batches were drawn for epoch {before.epoch}, the "
                f"others for epoch {case.step.epoch} (so the step reproduces), and a log has one "
                "epoch for each step",
                (
                    "End each epoch with a step, of fewer micro-batches, or drop the rest with "
                    "optimizer.zero_grad();",
                    'or trace with record="batches".',
                ),
                "random-augmentation",
            )
    return None


def of_a_subset(case: Case) -> Cause | None:
    """The IDs are positions in a subset, and the task has the whole data set; or vice versa."""
    train = case.task.train
    if not hasattr(train, "dataset") or not hasattr(train, "indices"):
        return None
    whole = replace(case.task, train=train.dataset)
    if not case.fits(_if_known(case, whole, case.step)):
        return None
    return Cause(
        "the IDs are positions in the whole data set, and task.train is a subset of it (with the "
        "whole one the step reproduces)",
        (
            "Give the task train=subset.dataset;",
            "or log positions in the subset: with_ids(subset) in the loader does.",
        ),
        _ANCHOR,
    )


def _in_epoch(step: Step, by: int) -> Step | None:
    """Return a step whose examples are drawn for another epoch; None if they have no seeds."""
    if any(micro.seeds is None or micro.seeds.epoch + by < 0 for micro in step.micro_batches):
        return None
    batches = [
        replace(micro, seeds=replace(micro.seeds, epoch=micro.seeds.epoch + by))
        for micro in step.micro_batches
        if micro.seeds is not None
    ]
    return replace(step, micro_batches=tuple(batches), epoch=(step.epoch or 0) + by)


def _random_of(step: Step, other: Step) -> tuple[MicroBatch, ...]:
    """Return the micro-batches of another step, under the random states of this one."""
    if len(step.micro_batches) != len(other.micro_batches):
        return other.micro_batches
    pairs = zip(step.micro_batches, other.micro_batches, strict=True)
    return tuple(replace(theirs, random_state=mine.random_state) for mine, theirs in pairs)


def _with_ids(step: Step, change: Callable[[Sequence[ID]], list[ID]]) -> Step:
    batches = [replace(m, ids=tuple(change(m.ids)), payload=None) for m in step.micro_batches]
    return replace(step, micro_batches=tuple(batches))


def _plus(step: Step, by: int) -> Step:
    return _with_ids(step, lambda ids: [i + by if isinstance(i, int) else i for i in ids])


def _if_known(case: Case, task: Task, step: Step) -> Vectors:
    if unknown_ids(task.train, set(step.batch_ids)):
        return {}
    return case.replayed(task, step)
