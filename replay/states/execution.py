"""Takes the steps of a run again: its model, its batches, its random states, its own optimizer.

The same operations in the same order give the same bits on the same kind of machine; whether they
did is seen from each step's digest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from replay.evaluate.binding import BoundModel
from replay.evaluate.state import step_name
from replay.evaluate.train_side import forward_pass
from replay.states.optimizer_again import (
    made_again,
    optimizer_class,
    set_hyperparameters,
    takes_closure,
)
from replay.task import Task
from tracer.errors import TaskError
from tracer.full_state import digest, restore
from tracer.log.read.run_log import RunLog
from tracer.records import MicroBatch, Step

Point = dict[str, Any]  # a full state, as a log has it
Objective = Callable[[Tensor, MicroBatch, int], Tensor]


def as_mean(losses: Tensor, micro: MicroBatch, count: int) -> Tensor:
    """Return a micro-batch's part of the objective as loops write it, if its weights are equal."""
    c = micro.coefficients
    whole = round(1 / (float(c[0]) * count), 6) if len(c) and bool(c[0]) else 0.0
    if bool((c == 1).all()):
        return losses.sum()
    if bool((c == c[0]).all()) and whole == len(c):
        return losses.mean() if count == 1 else losses.mean() / count
    return as_sum(losses, micro, count)


def as_sum(losses: Tensor, micro: MicroBatch, count: int) -> Tensor:
    """Return ``Σ c_i ℓ_i`` of a micro-batch."""
    return (losses * micro.coefficients.to(losses)).sum()


OBJECTIVES: tuple[Objective, ...] = (as_mean, as_sum)


class Execution:
    """Stands before one step of a run, and takes it.

    Args:
        log: The run.
        task: Its task.
        bound: A copy of the model in the run's dtypes, of which it makes use alone.
        device: Where that is.

    Attributes:
        objective: How the losses of a micro-batch become its part of the objective.
    """

    def __init__(self, log: RunLog, task: Task, bound: BoundModel, device: torch.device) -> None:
        self._log, self._task, self._bound, self._device = log, task, bound, device
        self._kind = optimizer_class(log.path, str(log.metadata["optimizer"]))
        self._optimizer: Optimizer | None = None
        self.objective = OBJECTIVES[0]

    def restore(self, step: Step, point: Point) -> None:
        """Go to a full state of the run; ``step`` is the next one, or the last one."""
        parameters = self._bound.parameters
        members = [[parameters[name] for name in group.names] for group in step.groups]
        groups = point["optimizer"]["param_groups"]
        self._optimizer = made_again(self._log.path, self._kind, groups, members)
        # copied: an optimizer works on the tensors that it is given
        own = {**point, "optimizer": copy.deepcopy(point["optimizer"])}
        restore(own, self._bound.module, self._optimizer)

    def point(self) -> Point:
        """Return where it stands, to come back to."""
        assert self._optimizer is not None
        module = self._bound.module
        return {
            "parameters": {n: p.detach().clone() for n, p in module.named_parameters()},
            "buffers": {n: b.detach().clone() for n, b in module.named_buffers()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "random": {"cpu": torch.get_rng_state(), "cuda": {}},
            "epoch": None,
        }

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters, copies on the CPU."""
        return {n: p.detach().cpu().clone() for n, p in self._bound.parameters.items()}

    def digest(self) -> int:
        """Return the CRC-32 of the parameters."""
        return digest(self._bound.parameters)

    def take(self, step: Step, buffers: Mapping[str, Tensor]) -> None:
        """Take a step from where it stands.

        Args:
            step: As logged.
            buffers: ``β_t``.
        """
        assert self._optimizer is not None
        bound, optimizer = self._bound, self._optimizer
        bound.load(bound.parameters, buffers)
        bound.module.train()
        for name, parameter in bound.parameters.items():
            parameter.requires_grad_(parameter.is_floating_point() and name not in step.frozen)
        for group, logged in zip(optimizer.param_groups, step.groups, strict=False):
            set_hyperparameters(group, logged)
        for logged in step.groups[len(optimizer.param_groups) :]:  # was added here
            new: dict[str, Any] = {"params": [bound.parameters[name] for name in logged.names]}
            optimizer.add_param_group(new)
            set_hyperparameters(optimizer.param_groups[-1], logged)
        loss = self._gradients(step)
        if takes_closure(self._kind):
            again = iter([loss])  # the first evaluation is there already
            optimizer.step(lambda: next(again, None) or self._gradients(step))
        else:
            optimizer.step()

    def _gradients(self, step: Step) -> Any:
        """Put the step's gradients where the optimizer looks for them; return the objective."""
        for parameter in self._bound.parameters.values():
            parameter.grad = None
        where, count = step_name(step), len(step.micro_batches)
        whole = torch.zeros((), dtype=torch.float64, device="cpu")
        with torch.enable_grad():
            for micro in step.micro_batches:
                losses = forward_pass(self._task, micro, where, self._bound, self._device)()
                value = self.joined(losses, micro, count) + self._penalty(count)
                if value.requires_grad:
                    torch.autograd.backward(value)
                whole += value.detach().double().cpu()
        self._as_applied(step)
        return whole

    def joined(self, losses: Tensor, micro: MicroBatch, count: int) -> Tensor:
        """Return a micro-batch's part of the objective, of ``count`` ones."""
        return self.objective(losses, micro, count)

    def clip(self, step: Step, held: list[Tensor]) -> None:
        """Scale the gradients of some parameters as the run did."""
        if step.clip_factor != 1:
            torch._foreach_mul_([p.grad for p in held if p.grad is not None], step.clip_factor)
            return
        _clip_outside(step, held)

    def _penalty(self, count: int) -> Tensor | float:
        if self._task.penalty is None:
            return 0.0
        value = self._task.penalty(self._bound.module)
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise TaskError("task.penalty must return a scalar tensor, the term of the objective.")
        return value if count == 1 else value / count

    @torch.no_grad()
    def _as_applied(self, step: Step) -> None:
        """Make the gradients those that the optimizer was given: absent, zero, clipped."""
        held = []
        for name in (name for group in step.groups for name in group.names):
            parameter = self._bound.parameters[name]
            if name in step.without_gradient:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                held.append(parameter)
        self.clip(step, held)


def _clip_outside(step: Step, held: list[Tensor]) -> None:
    """Clip as ``clip_grad_norm_`` does where the logged norm says that the run did.

    A norm that was clipped to 0.5 is 0.5 but for its last places, so the limit is known from it.
    """
    norms = torch._foreach_norm([p.grad for p in held if p.grad is not None])
    found = float(torch.linalg.vector_norm(torch.stack([n.double() for n in norms])))
    applied = step.gradient_norm
    if not applied < found * (1 - 1e-4):
        return
    limit = float(f"{applied * (found + 1e-6) / found:.5g}")
    torch.nn.utils.clip_grad_norm_(held, limit)
