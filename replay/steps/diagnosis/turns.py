"""Optimizers that take turns: whose loss a step had, and what its noise was drawn from."""

from __future__ import annotations

from collections.abc import Mapping

from replay.steps.diagnosis.case import Case, Cause
from tracer.records import each

_ANCHOR = "optimizers-that-take-turns"


def one_loss(case: Case) -> Cause | None:
    """The task has one loss, and each of several optimizers had its own."""
    count = len(each(str(case.states.log.metadata["optimizer"])))
    if isinstance(case.task.loss, Mapping) or len(case.step.groups_by_optimizer) == count:
        return None
    names = dict.fromkeys(name for one in case.step.micro_batches for name in one.optimizers)
    name = next(iter(names), "name")
    return Cause(
        "the run's optimizers took turns, and the task has one loss for the steps of all",
        (
            f'Give it the loss of each: Task(model, {{"{name}": loss, ...}}, measure=...), by the '
            "names that TracingOptimizer got;",
            "or, if all had this one, log the IDs of each step's own batch.",
        ),
        _ANCHOR,
    )


def noise_out_of_sight(case: Case) -> Cause | None:
    """No forward of the model was seen, so nobody knows what random numbers were drawn from."""
    if all(one.random_state is not None or one.payload for one in case.step.micro_batches):
        return None
    return Cause(
        "the log has no random state of this step, since not the model but parts of it were "
        "called, and task.loss may draw random numbers",
        (
            'Trace with record="batches", and put what is drawn into the batch: '
            "step(batch_ids=ids, batch=(x, noise));",
            "or call the model that the wrapper got, and draw inside of its forward.",
        ),
        _ANCHOR,
    )
