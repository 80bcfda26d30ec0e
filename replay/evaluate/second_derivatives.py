r"""How a step's gradient, and the buffers that its forward passes write, move with the parameters.

    (ā, β̄') -> (∂⟨ā, G(w, β)⟩ + ∂⟨β̄', β'(w, β)⟩) / ∂(w, β),

for m cotangents at once, by a second backward pass through the real forward pass: train mode, its
random state, its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from replay.evaluate.binding import BoundModel, without_graph
from replay.evaluate.running_statistics import Statistics, agrees, elsewhere
from replay.evaluate.second_pass import SecondPass, Vectors
from replay.evaluate.state import Transition
from replay.evaluate.train_side import forward_pass, penalty_of
from replay.evaluate.turns import copies, in_turn_on
from replay.evaluate.twice import cannot_twice
from replay.task import Task

_GRAPH = 8  # times what layers return, about, is what the graphs of both passes hold

Buffers = dict[str, Tensor]


class SecondDerivatives:
    """Differentiates the gradients of steps.

    Args:
        task: The task.
        bound: The model copy that takes the training side.
        names: The parameters that have a part in it.
        device: Where it is.
    """

    def __init__(
        self, task: Task, bound: BoundModel, names: Sequence[str], device: torch.device
    ) -> None:
        self._task, self._bound, self._device = task, bound, device
        self._names = list(names)
        self._together = True
        self._left: Buffers = {}  # running statistics, as the step's forward passes left them

    def pulled_back(self, now: Transition, gradient: Vectors, buffers: Vectors) -> Vectors:
        """Return cotangents of parameters and buffers before a step.

        Args:
            now: The step.
            gradient: ``ā``, of the gradient of the objective, by parameter.
            buffers: ``β̄'``, of the buffers after its forward passes.

        Returns:
            By the names of parameters and of buffers; absent ones are zero.

        Raises:
            GradientError: A layer cannot be differentiated twice, or a buffer moves in another way
                than is known; names it.
        """
        found: Vectors = {}
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # others have one derivative
            if self._task.penalty is not None:
                found = self._backward(self._penalty(now), gradient)
            starts = self._starts(now)
            for _, passes in groupby(range(len(starts)), lambda k: now.step.micro_batches[k].rank):
                before = self._rank(now, list(passes), starts, gradient, buffers)
                found, buffers = _sum(found, before), {}  # of rank 0, which comes first
        return found

    def require_logged(self, now: Transition) -> None:
        """Compare the buffers that the passes of the step just pulled back left with the log's.

        Raises:
            GradientError: The run had others after the step; names one.
        """
        for name, value in self._left.items():
            if not agrees(value, now.after.buffers[name]):
                raise elsewhere(name, now.name)

    def _rank(
        self,
        now: Transition,
        passes: Sequence[int],
        starts: Sequence[Buffers],
        gradient: Vectors,
        buffers: Vectors,
    ) -> Vectors:
        """Return cotangents before the forward passes of one rank."""
        found: Vectors = {}
        for k in reversed(passes):
            parts = self._backward(self._pass(now, k, starts[k]), gradient | buffers)
            buffers = {n: part for n, part in parts.items() if n not in self._names}
            found = _sum(found, {n: part for n, part in parts.items() if n in self._names})
        return _sum(found, buffers)

    def _backward(self, one: SecondPass, cotangents: Vectors) -> Vectors:
        found = one.backward(cotangents)
        self._together = one.together
        return found

    def _pass(self, now: Transition, k: int, start: Buffers) -> SecondPass:
        """Run a micro-batch's forward pass, and its first backward pass with a graph."""
        micro, module = now.step.micro_batches[k], self._bound.module
        inputs = self._placed(now, start)
        forward = forward_pass(self._task, micro, now.name, self._bound, self._device)

        def failed(error: RuntimeError) -> None:
            cannot_twice(module, forward, now.name, error)

        statistics = Statistics(module)
        with statistics.followed(), _counted(module) as counted:
            losses = forward()
        statistics.check(now.name)
        if k == max(j for j, one in enumerate(now.step.micro_batches) if one.rank == 0):
            self._left = {name: value.detach() for name, value in statistics.after.items()}
        objective = (losses * micro.coefficients.to(losses)).sum()
        gradients = self._first(now, objective, inputs, failed)
        outputs, leaves = gradients | statistics.after, inputs | statistics.before
        return SecondPass(outputs, leaves, _GRAPH * sum(counted), failed, self._together)

    def _penalty(self, now: Transition) -> SecondPass:
        inputs = self._placed(now, now.before.buffers)
        value = penalty_of(self._task, self._bound)

        def failed(error: RuntimeError) -> None:
            cannot_twice(None, lambda: value, f"{now.name}: task.penalty", error)

        gradients = self._first(now, value, inputs, failed)
        size = sum(p.numel() for p in inputs.values())
        return SecondPass(gradients, inputs, size, failed, self._together)

    def _first(
        self,
        now: Transition,
        value: Tensor,
        inputs: dict[str, Tensor],
        failed: Callable[[RuntimeError], None],
    ) -> dict[str, Tensor]:
        """Return gradients of the parameters that the step trains, with a graph."""
        trained = [name for name in now.step.trained if name in inputs]
        if not trained or not value.requires_grad:
            return {}
        known = [inputs[name] for name in trained]
        try:
            found = torch.autograd.grad(value, known, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            failed(error)
            raise
        return {name: g for name, g in zip(trained, found, strict=True) if g is not None}

    def _starts(self, now: Transition) -> list[Buffers]:
        """Return the buffers before each micro-batch's forward pass."""
        micro_batches, first = now.step.micro_batches, now.before.buffers
        if len(micro_batches) == 1 or not any(b.is_floating_point() for b in first.values()):
            return [first] * len(micro_batches)
        self._placed(now, first)
        module, found = self._bound.module, []
        for micro in in_turn_on(module, micro_batches):
            found.append(copies(module))
            without_graph(forward_pass(self._task, micro, now.name, self._bound, self._device))
        return found

    def _placed(self, now: Transition, buffers: Buffers) -> dict[str, Tensor]:
        """Put the model where a pass begins, in train mode; return the parameters."""
        bound = self._bound
        bound.load(now.before.parameters, buffers)
        bound.module.train()
        chosen = set(self._names)
        for name, parameter in bound.parameters.items():
            parameter.requires_grad_(name in chosen)
        return {name: bound.parameters[name] for name in self._names}


def _sum(found: Vectors, more: Vectors) -> Vectors:
    return found | {n: found[n] + part if n in found else part for n, part in more.items()}


@contextmanager
def _counted(module: nn.Module) -> Iterator[list[int]]:
    """Count the elements of what layers return."""
    found: list[int] = []

    def count(_: nn.Module, __: object, value: object) -> None:
        found.append(value.numel() if isinstance(value, Tensor) else 0)

    handles = [one.register_forward_hook(count) for one in module.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
