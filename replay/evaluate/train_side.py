"""The training side: per-example gradients of one step's real batch, at the state it is given.

Train mode, each micro-batch in order under the random state of its forward pass: at ``w_t`` and
``β_t``, what the run computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.binding import BoundModel, set_random_state, without_graph
from replay.evaluate.casts import coarsest
from replay.evaluate.checked import checked_losses, in_dtype, require_finite
from replay.evaluate.nested import fresh, moved
from replay.evaluate.state import State, step_name
from replay.evaluate.trained_step import TrainedStep
from replay.evaluate.turns import copies, in_turn_on, put_back
from replay.gradients.forms.form import all_finite
from replay.losses import loss_of_step
from replay.task import Task, collated, unknown_ids
from replay.vectors.workspace import storable
from tracer.errors import TaskError, shown
from tracer.records import MicroBatch, Step
from tracer.seeds import example


def replay_step(
    task: Task,
    step: Step,
    state: State,
    bound: BoundModel,
    names: list[str],
    *,
    device: torch.device,
    budget: int,
) -> TrainedStep:
    """Run a step's forward and backward passes at a state.

    Args:
        task: The task.
        step: Gives the batches, weights and random states, as logged.
        state: Where: ``w_t`` and ``β_t`` repeat the run, others are a counterfactual.
        bound: The model copy; holds the state's parameters afterwards.
        names: The parameters that the step moved.
        device: Where the model is.
        budget: Bytes for stored complete gradients.

    Raises:
        TaskError: A logged ID is not in ``task.train``, or losses have the wrong shape.
        NonFiniteError: A loss or a gradient is NaN or infinite; names step and example.
    """
    parameters, where = _placed(bound, state, names), step_name(step)
    batches = []
    for micro in in_turn_on(bound.module, step.micro_batches):
        forward = forward_pass(task, micro, where, bound, device)
        weights = micro.coefficients.to(device)
        share = storable(budget) // max(1, len(step.micro_batches))
        found = bound.engine.of_batch(parameters, forward, weights, budget=share, where=where)
        require_finite(found, micro.ids, where)
        batches.append(found)
    totals, penalty = [batch.total for batch in batches], _penalty(task, bound, parameters)
    return TrainedStep.of(batches, step.batch_ids, totals, penalty)


def replay_gradient(
    task: Task,
    step: Step,
    state: State,
    bound: BoundModel,
    names: list[str],
    *,
    device: torch.device,
    budget: int,
) -> TrainedStep:
    """Do what ``replay_step`` does for the batch's gradient only, without its examples'."""
    parameters, where = _placed(bound, state, names), step_name(step)
    totals: list[dict[str, Tensor]] = []
    for micro in in_turn_on(bound.module, step.micro_batches):
        with torch.enable_grad():
            losses = forward_pass(task, micro, where, bound, device)()
            objective = (losses * micro.coefficients.to(losses)).sum()
        totals.append(_gradients(objective, parameters))
    found = TrainedStep.of([], step.batch_ids, totals, _penalty(task, bound, parameters))
    if not all_finite(found.gradient.values()):  # name the example
        return replay_step(task, step, state, bound, names, device=device, budget=budget)
    return found


def losses_at(
    task: Task, step: Step, state: State, bound: BoundModel, *, device: torch.device
) -> list[Tensor]:
    """Return the losses of a step's micro-batches at a state, float64 ``(b,)`` each.

    All else is as in the run. To compare two points of one step, give the state at either with
    the step's own buffers ``β_t``, as ``Transition.along`` does.
    """
    bound.load(state.parameters, state.buffers)
    bound.eval_mode.leave()
    where = step_name(step)
    with in_dtype(bound.dtype, "task.loss", where):
        return [
            without_graph(forward_pass(task, micro, where, bound, device)).double()
            for micro in in_turn_on(bound.module, step.micro_batches)
        ]


def _placed(bound: BoundModel, state: State, names: list[str]) -> dict[str, Tensor]:
    """Put the model at a state, in train mode; return the parameters that the step moves."""
    bound.load(state.parameters, state.buffers)
    bound.eval_mode.leave()
    chosen = set(names)
    for name, parameter in bound.parameters.items():
        parameter.requires_grad_(name in chosen)
    return {name: bound.parameters[name] for name in names}


def forward_pass(
    task: Task, micro: MicroBatch, where: str, bound: BoundModel, device: torch.device
) -> Callable[[], Tensor]:
    """Return the micro-batch's forward pass, under its random state, from the buffers of now."""
    batch = moved(batch_of(task, micro, where), device, bound.dtype)
    loss = loss_of_step(task.loss, micro.optimizers)
    before = copies(bound.module)
    runs = itertools.count()

    def forward() -> Tensor:
        if next(runs):
            put_back(bound.module, before)
        set_random_state(micro.random_state)
        losses = loss(bound.module, fresh(batch))  # the data set's own, maybe
        if bound.coarsest is None and isinstance(losses, Tensor):
            bound.coarsest = coarsest(losses)
        return checked_losses(losses, micro.ids, function="task.loss", where=where)

    return forward


def batch_of(task: Task, micro: MicroBatch, where: str) -> Any:
    """Return the logged batch, or the one that the task has for its IDs."""
    if micro.payload is not None:
        return micro.batch
    missing = unknown_ids(task.train, set(micro.ids))
    if missing:
        raise TaskError(
            f"{where} used the training example {shown(missing[0])}, which task.train does not "
            "have; give the task the data (and the keys) of the traced run."
        )
    return fetched(task, micro)


def fetched(task: Task, micro: MicroBatch) -> Any:
    """Return the batch that the task has for a micro-batch's IDs."""
    found = [example(task.train, identity, micro.seeds, identity) for identity in micro.ids]
    return collated(task, found)


def _penalty(task: Task, bound: BoundModel, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    if task.penalty is None:
        return {}
    with torch.enable_grad():
        value = penalty_of(task, bound)
    try:
        return _gradients(value, parameters)
    except RuntimeError as error:
        raise TaskError(
            f"task.penalty cannot be differentiated once the losses were: {error}\n"
            "  1. If it reads what a forward left in the model (the weight of "
            "torch.nn.utils.spectral_norm), compute it from the parameters (weight_orig).\n"
            "  2. Or let the layer compute it anew: torch.nn.utils.parametrizations.spectral_norm."
        ) from error


def penalty_of(task: Task, bound: BoundModel) -> Tensor:
    """Return the value of ``task.penalty``, which there is, at what is loaded."""
    assert task.penalty is not None
    value = task.penalty(bound.module)
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise TaskError("task.penalty must return a scalar tensor, the term of the objective.")
    return value


def _gradients(value: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients of a scalar; of no parameter if it depends on none that moved."""
    if not parameters or not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}
