"""Many runs of a small model in step: one forward and one backward pass for all of them.

Parameters, buffers and the optimizer's state have one more dimension, that of the runs, or lanes,
and ``torch.func.vmap`` goes over it. Rules that work element by element take their step on stacked
tensors as they do on single ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.optim import Optimizer

from replay.counterfactual.change import Change
from replay.evaluate.binding import BoundModel, set_random_state
from replay.evaluate.elsewhere import Elsewhere
from replay.evaluate.nested import fresh, moved
from replay.evaluate.state import State, members, step_name
from replay.evaluate.train_side import batch_of
from replay.evaluate.turns import in_turn
from replay.losses import all_losses
from replay.states.execution import Part, Point
from replay.states.optimizer_again import made_again, set_groups, take_step
from replay.task import Task
from tracer.log.read.run_log import RunLog
from tracer.records import MicroBatch, Step

Stacked = dict[str, Tensor]  # (lanes, *shape), by name


class Lanes:
    """Takes steps of several counterfactual runs together.

    Args:
        log: The run.
        task: Its task.
        bound: A copy of the model, whose tensors stay as they are.
        device: Where that is.
        kinds: The run's optimizers.
        part: How losses of a micro-batch became its part of the objective.
    """

    def __init__(
        self,
        log: RunLog,
        task: Task,
        bound: BoundModel,
        device: torch.device,
        kinds: Sequence[type[Optimizer]],
        part: Part,
    ) -> None:
        self._log, self._task, self._bound, self._device = log, task, bound, device
        self._kinds, self._part = kinds, part
        self._losses = Elsewhere(all_losses(task.loss), bound.module)

    def begin(self, step: Step, point: Point, changes: Sequence[Change]) -> None:
        """Put a lane for each change at a full state of the run; ``step`` is the next one."""
        self._changes = list(changes)
        self.alive = torch.ones(len(changes), dtype=torch.bool)
        self._parameters = {n: self._stacked(p) for n, p in point["parameters"].items()}
        self._buffers = {n: self._stacked(b) for n, b in point["buffers"].items()}
        known = copy.deepcopy(point["optimizer"])  # an optimizer works on what it is given
        own = [self._parameters[name] for name in members(known, step.groups)]
        self._optimizer = made_again(self._log.path, self._kinds, known, own)
        state = {
            number: {k: v if k == "step" else self._stacked(v) for k, v in entry.items()}
            for number, entry in known["state"].items()
        }
        self._optimizer.load_state_dict({**known, "state": state})

    def advance(self, step: Step) -> None:
        """Take a step in every lane; ``alive`` says in which no loss was NaN or infinite so far."""
        self._bound.module.train()
        set_groups(self._optimizer, step, self._parameters)
        gradient = self._gradient(step)
        applied = {
            name: gradient.get(name, torch.zeros_like(self._parameters[name]))
            for group in step.groups
            for name in group.names
            if name not in step.without_gradient
        }
        for name, parameter in self._parameters.items():
            parameter.grad = applied.get(name)
        take_step(self._optimizer, step)

    def state(self, lane: int) -> State:
        """Return where a lane stands."""
        parameters = {n: p[lane].cpu() for n, p in self._parameters.items()}
        return State(parameters, {n: b[lane].cpu() for n, b in self._buffers.items()})

    def alike(self, first: int) -> bool:
        """Return whether all lanes from one on have the same parameters, to the last bit."""
        return all(bool((p[first:] == p[-1:]).all()) for p in self._parameters.values())

    def _stacked(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(self._device).expand(len(self._changes), *value.shape).clone()

    def _gradient(self, step: Step) -> Stacked:
        """Return the gradient of the objective in each lane, and let buffers go on."""
        moving = {
            name: p
            for name, p in self._parameters.items()
            if p.is_floating_point() and name not in step.frozen
        }
        dtype = next(iter(moving.values())).dtype
        weights = self._weights(step, dtype)
        in_order = in_turn(step.micro_batches, lambda: self._buffers, self._hold)
        parts = [
            self._of_losses(micro, moving, c, step_name(step))
            for micro, c in zip(in_order, weights, strict=True)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = {name: total[name] + part[name] for name in total}
        return total

    def _hold(self, buffers: Stacked) -> None:
        self._buffers = buffers

    def _weights(self, step: Step, dtype: torch.dtype) -> list[Tensor]:
        """Return what losses of each micro-batch are multiplied by, ``(lanes, b)``."""
        found, count = [], len(step.micro_batches)
        whole = [_derivative(self._part, micro, count, dtype) for micro in step.micro_batches]
        for change in self._changes:
            own, changed = change.applied(step)
            others = {id(micro) for micro in changed}
            found.append(
                [
                    micro.coefficients.to(dtype) if id(micro) in others else c
                    for micro, c in zip(own.micro_batches, whole, strict=True)
                ]
            )
        return [torch.stack(rows).to(self._device) for rows in zip(*found, strict=True)]

    def _of_losses(
        self, micro: MicroBatch, moving: Stacked, weights: Tensor, where: str
    ) -> Stacked:
        batch = fresh(moved(batch_of(self._task, micro, where), self._device, self._bound.dtype))
        fixed = {n: p for n, p in self._parameters.items() if n not in moving}

        def objective(
            own: Stacked, others: Stacked, buffers: Stacked, c: Tensor
        ) -> tuple[Tensor, tuple[Tensor, Stacked]]:
            after = {name: b.clone() for name, b in buffers.items()}
            losses = self._losses.at({**own, **others, **after}, batch)
            if losses.shape != c.shape:
                raise ValueError("a loss of another shape, which a run alone says")
            return (losses * c.to(losses)).sum(), (losses.detach(), after)

        set_random_state(micro.random_state)
        together = vmap(grad(objective, has_aux=True), randomness="same")
        found: Stacked
        found, (losses, self._buffers) = together(moving, fixed, self._buffers, weights)
        self.alive &= losses.isfinite().all(1).cpu()
        return found


def _derivative(part: Part, micro: MicroBatch, count: int, dtype: torch.dtype) -> Tensor:
    """Return the derivative of a part of the objective by its losses, to the bit."""
    losses = torch.zeros(len(micro.ids), dtype=dtype, requires_grad=True)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(part(losses, micro, count), losses)
    return found
