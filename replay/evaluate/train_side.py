"""The training side: per-example gradients of one step's real batch, as the run computed them.

Train mode, buffers ``β_t``, each micro-batch in order under the random state of its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.batches import fresh, moved
from replay.evaluate.binding import BoundModel, checked_losses, set_random_state, without_graph
from replay.evaluate.state import State, Transition
from replay.gradients.forms.form import is_finite
from replay.gradients.forms.per_example import PerExample
from replay.task import Task, unknown_ids
from replay.vectors.fused import together
from tracer.errors import NonFiniteError, TaskError, UnsupportedRuleError
from tracer.records import ID, MicroBatch

TENSOR = 1 << 10  # bytes that a tensor takes besides its elements, about, with its place in a dict


@dataclass(frozen=True)
class TrainedStep:
    """Gradients of ``c_i ℓ_i`` of every occurrence in a step.

    Attributes:
        batches: One for each micro-batch, in order; none where only the sum was computed.
        ids: Every occurrence, in the same order, ``(b,)``.
        gradient: ``Σ c_i g_i`` by parameter.
        penalty: Gradient of ``task.penalty``; empty without one.
    """

    batches: list[PerExample]
    ids: list[ID]
    gradient: dict[str, Tensor]
    penalty: dict[str, Tensor]

    @property
    def nbytes(self) -> float:
        """Bytes of the stored gradients; infinite where some are computed when asked for."""
        forms = [form for batch in self.batches for form in batch.forms.values()]
        tensors = len(self.batches) + sum(len(form.tensors) for form in forms)
        return tensors * TENSOR + sum(batch.nbytes for batch in self.batches)

    def examples_only(self) -> TrainedStep:
        """Return the same without the sums, which nobody needs once the step is divided."""
        batches = [replace(batch, total={}) for batch in self.batches]
        return TrainedStep(batches, self.ids, {}, {})


def replay_step(
    task: Task,
    transition: Transition,
    bound: BoundModel,
    names: list[str],
    *,
    device: torch.device,
    budget: int,
) -> TrainedStep:
    """Run a step's forward and backward passes again, at ``w_t``.

    Args:
        task: The task.
        transition: The logged step.
        bound: The model copy; holds ``w_t`` afterwards.
        names: The parameters that the step moved.
        device: Where the model is.
        budget: Bytes for stored complete gradients.

    Raises:
        TaskError: A logged ID is not in ``task.train``, or losses have the wrong shape.
        NonFiniteError: A loss or a gradient is NaN or infinite; names step and example.
        UnsupportedRuleError: A gradient is sparse.
    """
    parameters = _at_step(transition, bound, names)
    micro_batches = transition.step.micro_batches
    batches = []
    for micro in micro_batches:
        forward = _forward(task, micro, transition, bound, device)
        weights = micro.coefficients.to(device)
        share = budget // max(1, len(micro_batches))
        found = bound.engine.of_batch(
            parameters, forward, weights, budget=share, where=transition.name
        )
        _require_finite(found, micro.ids, transition.name)
        batches.append(found)
    gradient = _sum([batch.total for batch in batches], transition.name)
    penalty = _penalty(task, bound, parameters)
    return TrainedStep(batches, transition.step.batch_ids, gradient, penalty)


def replay_gradient(
    task: Task,
    transition: Transition,
    bound: BoundModel,
    names: list[str],
    *,
    device: torch.device,
    budget: int,
) -> TrainedStep:
    """Do what ``replay_step`` does for the batch's gradient only, without its examples'."""
    parameters = _at_step(transition, bound, names)
    totals = []
    for micro in transition.step.micro_batches:
        with torch.enable_grad():
            losses = _forward(task, micro, transition, bound, device)()
            objective = (losses * micro.coefficients.to(losses)).sum()
        totals.append(_gradients(objective, parameters))
    gradient = _sum(totals, transition.name)
    if not all(is_finite(g) for g in gradient.values()):
        return replay_step(task, transition, bound, names, device=device, budget=budget)
    return TrainedStep([], transition.step.batch_ids, gradient, _penalty(task, bound, parameters))


def losses_at(
    task: Task, transition: Transition, bound: BoundModel, state: State, *, device: torch.device
) -> list[Tensor]:
    """Return the losses of a step's micro-batches, as in the run but at another state, float64."""
    bound.load(state.parameters, state.buffers)
    bound.module.train()
    return [
        without_graph(_forward(task, micro, transition, bound, device)).double()
        for micro in transition.step.micro_batches
    ]


def _at_step(transition: Transition, bound: BoundModel, names: list[str]) -> dict[str, Tensor]:
    """Put the model where the step began; return the parameters that it moved."""
    bound.load(transition.before.parameters, transition.before.buffers)
    bound.module.train()
    chosen = set(names)
    for name, parameter in bound.parameters.items():
        parameter.requires_grad_(name in chosen)
    return {name: bound.parameters[name] for name in names}


def _sum(totals: list[dict[str, Tensor]], where: str) -> dict[str, Tensor]:
    gradient: dict[str, Tensor] = {}
    for found in totals:
        for name, part in found.items():
            if part.layout != torch.strided:
                raise UnsupportedRuleError(
                    f"{where}: the gradient of {name!r} is sparse, and what an optimizer does with "
                    "sparse gradients cannot be split; build the model with sparse=False. tracincp "
                    "and the measured drops (Replay.drops) work for every optimizer."
                )
            gradient[name] = gradient[name] + part if name in gradient else part
    return together(gradient)


def _forward(
    task: Task,
    micro: MicroBatch,
    transition: Transition,
    bound: BoundModel,
    device: torch.device,
) -> Callable[[], Tensor]:
    """Return the micro-batch's forward pass, under its random state."""
    where = transition.name
    batch = moved(_batch(task, micro, where), device, bound.dtype)

    def forward() -> Tensor:
        set_random_state(micro.random_state)
        losses = task.loss(bound.module, fresh(batch))  # the data set's own, maybe
        return checked_losses(losses, micro.ids, function="task.loss", where=where)

    return forward


def _batch(task: Task, micro: MicroBatch, where: str) -> Any:
    """Return the batch that the log recorded, or the one that the task has for its IDs."""
    if micro.payload is not None:
        return micro.batch
    missing = unknown_ids(task.train, set(micro.ids))
    if missing:
        raise TaskError(
            f"{where} used the training example {missing[0]!r}, which task.train does not have; "
            "give the task the data (and the keys) of the traced run."
        )
    return task.collate([task.train[identity] for identity in micro.ids])


def _require_finite(found: PerExample, ids: tuple[ID, ...], where: str) -> None:
    bad = [name for name, gradient in found.total.items() if not is_finite(gradient)]
    if not bad:
        return
    for i, identity in enumerate(ids):
        if _has_nonfinite_row(found, i):
            raise NonFiniteError(
                f"{where}: the gradient of training example {identity!r} is NaN or infinite "
                f"(in {bad[0]!r}); influence is undefined there."
            )
    raise NonFiniteError(
        f"{where}: the batch gradient of {bad[0]!r} is NaN or infinite; batch {list(ids)!r}."
    )


def _has_nonfinite_row(found: PerExample, i: int) -> bool:
    chosen = torch.tensor([i], device=found.losses.device)
    if not all(bool(found.rows(name, chosen).isfinite().all()) for name in found.forms):
        return True
    for rows, gradients in found.blocks():
        if rows.start <= i < rows.stop:
            return any(not g[i - rows.start].isfinite().all() for g in gradients.values())
    return False


def _penalty(task: Task, bound: BoundModel, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    if task.penalty is None:
        return {}
    with torch.enable_grad():
        value = task.penalty(bound.module)
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise TaskError("task.penalty must return a scalar tensor, the term of the objective.")
    return _gradients(value, parameters)


def _gradients(value: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients of a scalar; of no parameter if it depends on none that moved."""
    if not parameters or not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}
