"""Whether second backward passes give the derivative of the gradient: compared with differences.

Torch differentiates what a backward pass computed. Where that left something out (``detach``, a
straight-through estimator, a function marked ``once_differentiable``), no error need come.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replay.evaluate.binding import BoundModel
from replay.evaluate.second_derivatives import SecondDerivatives
from replay.evaluate.state import State, Transition
from replay.evaluate.train_side import forward_pass, replay_gradient
from replay.task import Task
from tracer.errors import GradientError

_STEPS = (1e-7, 1e-8, 1e-9)  # of a parameter's size; between near points lie fewer kinks
_SHARE, _ROUNDING = 1e-3, 1e-14

Vector = dict[str, Tensor]


def prove(
    task: Task, bound: BoundModel, names: list[str], now: Transition, device: torch.device
) -> None:
    """Compare along random directions.

    Args:
        task: The task.
        bound: A copy of the model in float64.
        names: The parameters to differentiate by.
        now: The step.
        device: Where the copy is.

    Raises:
        GradientError: They differ.
    """
    if any(_agree(task, bound, names, now, device, h) for h in _STEPS):
        return
    with torch.enable_grad():
        losses = forward_pass(task, now.step.micro_batches[0], now.name, bound, device)()
    found = _custom_functions(losses)
    among = f" (its graph has the custom functions {', '.join(found)})" if found else ""
    raise GradientError(
        f"{now.name}: torch's second derivatives of the loss differ from differences of its "
        f"gradient{among}. Something there is left out of derivatives, and unrolled needs all.\n"
        "  1. Look for detach(), straight-through estimators, custom backward functions and "
        "once_differentiable in task.loss and the model, and do without;\n"
        "  2. or ask for the other methods, which take first derivatives only."
    )


def _agree(
    task: Task,
    bound: BoundModel,
    names: list[str],
    now: Transition,
    device: torch.device,
    h: float,
) -> bool:
    """Return whether the two are the same along one direction, of differences of a size."""
    generator = torch.Generator().manual_seed(now.step.index)
    w = {n: now.before.parameters[n].to(device, torch.float64) for n in names}
    trained = [n for n in now.step.trained if n in w]
    left = {n: _random(w[n], generator) for n in trained}
    way = {n: _random(x, generator) * (1e-3 + _rms(x)) for n, x in w.items()}
    second = SecondDerivatives(task, bound, names, device)
    pulled = second.pulled_back(now, {n: v.view(1, -1) for n, v in left.items()}, {})
    found = sum(float(pulled[n].flatten() @ way[n].flatten()) for n in names if n in pulled)
    ends = []
    for sign in (1, -1):
        moved = {n: x + sign * h * way[n] for n, x in w.items()}
        at = State({**now.before.parameters, **moved}, now.before.buffers)
        ends.append(_gradient(task, bound, trained, now, at, device))
    moves = {n: (ends[0][n] - ends[1][n]) / (2 * h) for n in trained}
    expected = sum(float(left[n].flatten() @ moves[n].flatten()) for n in trained)
    return abs(found - expected) <= _SHARE * _norm(moves) + _ROUNDING / h * _norm(ends[0])


def _gradient(
    task: Task,
    bound: BoundModel,
    names: list[str],
    now: Transition,
    at: State,
    device: torch.device,
) -> Vector:
    found = replay_gradient(task, now.step, at, bound, names, device=device, budget=1 << 20)
    zero = {n: torch.zeros_like(bound.parameters[n]) for n in names}
    return {
        n: zero[n] + found.gradient.get(n, zero[n]) + found.penalty.get(n, zero[n]) for n in names
    }


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(like.device)


def _custom_functions(losses: Tensor) -> list[str]:
    """Return names of backward functions in a graph that are written in Python."""
    found: dict[str, None] = {}
    waiting, seen = [losses.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found[node.name()] = None
        waiting += [one for one, _ in node.next_functions]
    return list(found)


def _rms(x: Tensor) -> float:
    return float(x.norm()) / math.sqrt(max(1, x.numel()))


def _norm(vector: Vector) -> float:
    """Return the norm: about how large a product with a random direction is."""
    return math.hypot(*(float(v.norm()) for v in vector.values()))
