r"""What one step was made of, and whether it is the step that was logged.

    Δ_t = w_t − w_{t+1} = data + regulariser + history + rounding

``data`` is what gradients of training examples moved, of this step and through the optimizer's
buffer of earlier ones; ``regulariser`` likewise decay and penalty; ``history`` what the buffer
held before the first step that is looked at; ``rounding`` what is left. A remainder beyond
rounding error means that the replayed step is not the one that was run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.trained import TrainedStep
from replay.trajectory import Transition
from tracer.filters import Filter

Vector = dict[str, Tensor]  # by parameter, float64
Drive = tuple[Tensor | None, Tensor | None]  # u of data and of the regulariser; None is zero
Parts = tuple[Tensor | None, Tensor | None, Tensor | None]  # data, regulariser, history


@dataclass(frozen=True)
class Displacement:
    """``Δ_t`` in parts, each a float64 vector by parameter."""

    data: Vector
    regulariser: Vector
    history: Vector
    rounding: Vector

    @property
    def parts(self) -> list[Vector]:
        """The four parts, in order; their sum is ``Δ_t``."""
        return [self.data, self.regulariser, self.history, self.rounding]

    def of(self, names: frozenset[str] | None) -> list[Vector]:
        """Return the parts of some parameters, and what the others did as a fifth; None is all."""
        if names is None:
            return self.parts
        inside = [{n: v for n, v in part.items() if n in names} for part in self.parts]
        outside: Vector = {}
        for part in self.parts:
            for name in part.keys() - names:
                outside[name] = outside[name] + part[name] if name in outside else part[name]
        return [*inside, outside]

    def norm(self) -> float:
        """Return ``‖Δ_t‖``."""
        names = {name for part in self.parts for name in part}
        sums = (sum(part[n] for part in self.parts if n in part) for n in names)
        return math.sqrt(sum(float(torch.as_tensor(s).square().sum()) for s in sums))


def total(parts: Parts) -> Tensor | None:
    """Return the sum of a buffer's parts; None is zero."""
    found = [part for part in parts if part is not None]
    return torch.stack(found).sum(0) if found else None


def drives(
    transition: Transition,
    trained: TrainedStep,
    decays: dict[str, float],
    factors: dict[str, float],
    device: torch.device,
) -> dict[str, Drive]:
    """Return what data and regulariser drive each parameter with.

    Args:
        transition: The logged step.
        trained: Its gradients.
        decays: Coupled weight decay of every parameter that moved.
        factors: ``±κ`` of each.
        device: Where to compute.
    """
    found: dict[str, Drive] = {}
    for name, decay in decays.items():
        data, pull = (
            side[name].double() * factors[name] if name in side else None
            for side in (trained.gradient, trained.penalty)
        )
        if decay:
            w = transition.before.parameters[name].to(device).double() * decay
            pull = w if pull is None else pull + w
        found[name] = (data, pull)
    return found


def split(
    transition: Transition,
    driven: dict[str, Drive],
    filters: dict[str, Filter],
    buffers: dict[str, Parts],
    device: torch.device,
) -> tuple[Displacement, dict[str, Parts]]:
    """Divide ``Δ_t``; return it and the buffers' parts after the step.

    Args:
        transition: The logged step.
        driven: What data and regulariser drive each parameter with.
        filters: Of every parameter that moved.
        buffers: By parameter, before the step.
        device: Where to compute.
    """
    result = Displacement({}, {}, {}, {})
    after = dict(buffers)
    for name, old in transition.before.parameters.items():
        w = old.to(device)
        rest = w.double() - transition.after.parameters[name].to(device)
        if name in filters:
            moves = _moves(filters[name], w, driven[name], after, name)
            for vector, move in zip(result.parts, moves, strict=False):
                if move is not None:
                    vector[name] = move
                    rest.sub_(move)
        result.rounding[name] = rest
    return result, after


def _moves(
    rule: Filter, w: Tensor, driven: Drive, buffers: dict[str, Parts], name: str
) -> list[Tensor | None]:
    """Return what each part moves; the parameter's buffer is replaced by the one after."""
    before = buffers.get(name, (None, None, None))
    pairs = [rule.forward(u, b) for u, b in zip((*driven, None), before, strict=True)]
    if rule.gain or name in buffers:
        buffers[name] = (pairs[0][1], pairs[1][1], pairs[2][1])
    data, pull, history = (move for move, _ in pairs)
    if rule.decoupled:
        shrunk = w.double() * rule.decoupled
        pull = shrunk if pull is None else pull + shrunk
    return [data, pull, history]
