"""Takes the steps of a run again: its model, its batches, its random states, its own optimizer.

The same operations in the same order give the same bits on the same kind of machine; whether they
did is seen from each step's digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from replay.evaluate.binding import BoundModel
from replay.evaluate.state import members, step_name
from replay.evaluate.train_side import forward_pass
from replay.evaluate.turns import in_turn_on
from replay.states.applied_again import AppliedGradients
from replay.states.optimizer_again import (
    made_again,
    named_state,
    optimizer_class,
    set_groups,
    take_step,
    takes_closure,
)
from replay.states.rank_gradients import RankGradients, last_ones
from replay.task import Task
from tracer.errors import TaskError
from tracer.full_state import copied, digest, restore
from tracer.log.read.run_log import RunLog
from tracer.records import MicroBatch, Step, each

Point = dict[str, Any]  # a full state, as a log has it
Part = Callable[[Tensor, MicroBatch, int], Tensor]


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


@dataclass(frozen=True)
class Joining:
    """How a loop made one objective of a step's losses; each way adds gradients up differently.

    Attributes:
        part: How those of a micro-batch become its part.
        together: Whether one backward pass goes through all of them.
    """

    part: Part = as_mean
    together: bool = False


JOININGS = tuple(
    Joining(part, together) for together in (False, True) for part in (as_mean, as_sum)
)


class Execution:
    """Stands before one step of a run, and takes it.

    Args:
        log: The run.
        task: Its task.
        bound: A copy of the model in the run's dtypes, of which it makes use alone.
        device: Where that is.

    Attributes:
        joining: How a step's losses become its objective.
        applied: Finds how the run clipped.
    """

    def __init__(self, log: RunLog, task: Task, bound: BoundModel, device: torch.device) -> None:
        self._log, self._task, self._bound, self._device = log, task, bound, device
        names = each(str(log.metadata["optimizer"]))
        self._kinds = [optimizer_class(log.path, name, task) for name in names]
        self._takes_closure = any(map(takes_closure, self._kinds))
        self._optimizer: Optimizer | None = None
        self.applied = AppliedGradients()
        self.joining = JOININGS[0]

    def restore(self, step: Step, point: Point) -> None:
        """Go to a full state of the run; ``step`` is the next one, or the last one."""
        parameters, stored = self._bound.parameters, point["optimizer"]
        own = [parameters[name] for name in members(stored, step.groups)]
        self._optimizer = made_again(self._log.path, self._kinds, stored, own)
        # copied: an optimizer works on the tensors that it is given
        point = {**point, "optimizer": copied(stored)}
        restore(point, self._bound.module, self._optimizer)

    def point(self) -> Point:
        """Return where it stands, to come back to."""
        assert self._optimizer is not None
        module, held = self._bound.module, named_state(self._optimizer, self._bound.parameters)
        return {
            "parameters": {n: p.detach().clone() for n, p in module.named_parameters()},
            "buffers": {n: b.detach().clone() for n, b in module.named_buffers()},
            "optimizer": copied(held),
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
        optimizer = self._optimizer
        self._ready(step, optimizer, buffers)
        loss = self._gradients(step)
        if self._takes_closure:
            known: list[Any] = [loss]  # the first evaluation is there already
            optimizer.step(lambda: known.pop() if known else self._gradients(step, first=False))
        else:
            take_step(optimizer, step)

    def can_take(self, gradient: Mapping[str, Tensor]) -> bool:
        """Return whether a step can be taken with a gradient that somebody else computed."""
        own = self._bound.parameters
        alike = all(
            (g.dtype, g.device) == (own[n].dtype, own[n].device) for n, g in gradient.items()
        )
        return alike and not self._takes_closure

    def take_with(
        self, step: Step, gradient: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        """Take a step from where it stands, with the gradient of its objective.

        Args:
            step: As logged.
            gradient: By parameter.
            after: ``β_{t+1}``, which a forward pass would have led to.
        """
        assert self._optimizer is not None
        self._ready(step, self._optimizer, after)
        for name, parameter in self._bound.parameters.items():
            found = gradient.get(name)
            parameter.grad = None if found is None else found.clone()  # an optimizer writes into it
        self._as_applied(step, first=True)
        take_step(self._optimizer, step)

    def _ready(self, step: Step, optimizer: Optimizer, buffers: Mapping[str, Tensor]) -> None:
        """Give model and optimizer what the step found."""
        bound = self._bound
        bound.load(bound.parameters, buffers)
        bound.module.train()
        for name, parameter in bound.parameters.items():
            parameter.requires_grad_(parameter.is_floating_point() and name not in step.frozen)
        set_groups(optimizer, step, bound.parameters)

    def _gradients(self, step: Step, *, first: bool = True) -> Any:
        """Put a step's gradients where the optimizer looks for them; return the objective.

        A closure's later evaluations draw their random numbers where the last one ended.
        """
        for parameter in self._bound.parameters.values():
            parameter.grad = None
        where, micros = step_name(step), step.micro_batches
        ends = {id(one) for one in (last_ones(micros) if self.joining.together else micros)}
        parts, done = list[Tensor](), list[Tensor]()
        ranks = RankGradients(self._bound.parameters)
        with torch.enable_grad():
            for one in in_turn_on(self._bound.module, micros):
                ranks.begin(one.rank)
                micro = one if first else replace(one, random_state=None)
                losses = forward_pass(self._task, micro, where, self._bound, self._device)()
                parts.append(self.joined(losses, micro, len(micros)))
                if id(one) in ends:
                    whole = sum(parts[1:], parts[0]) + self._penalty(len(ends))
                    done.append(self._differentiated(whole))
                    parts.clear()
        ranks.add_up()
        self._as_applied(step, first=first)
        return sum(done[1:], done[0])

    @staticmethod
    def _differentiated(value: Tensor) -> Tensor:
        if value.requires_grad:
            torch.autograd.backward(value)
        return value.detach()

    def joined(self, losses: Tensor, micro: MicroBatch, count: int) -> Tensor:
        """Return a micro-batch's part of the objective, of ``count`` ones."""
        return self.joining.part(losses, micro, count)

    def clip(self, step: Step, gradients: dict[str, Tensor], *, first: bool) -> dict[str, Tensor]:
        """Return gradients clipped as the run did; ``first`` unless a closure runs again."""
        return self.applied.first(step, gradients) if first else self.applied.later(gradients)

    def _penalty(self, count: int) -> Tensor | float:
        if self._task.penalty is None:
            return 0.0
        value = self._task.penalty(self._bound.module)
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise TaskError("task.penalty must return a scalar tensor, the term of the objective.")
        return value if count == 1 else value / count

    @torch.no_grad()
    def _as_applied(self, step: Step, *, first: bool) -> None:
        """Make the gradients those that the optimizer was given: absent, zero, clipped."""
        held: dict[str, Tensor] = {}
        for name in (name for group in step.groups for name in group.names):
            parameter = self._bound.parameters[name]
            if name not in step.without_gradient:
                grad = parameter.grad
                held[name] = torch.zeros_like(parameter) if grad is None else grad
            parameter.grad = None
        for name, gradient in self.clip(step, held, first=first).items():
            self._bound.parameters[name].grad = gradient
