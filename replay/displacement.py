r"""What one step was made of, and whether it is the step that was logged.

    Δ_t = w_t − w_{t+1} = data + regulariser + history + rounding

``data`` is what gradients of training examples moved, of this step and through the optimizer's
buffer of earlier ones; ``regulariser`` likewise decay and penalty; ``history`` what the buffer
held before the first step that is looked at; ``rounding`` what is left. A remainder beyond
rounding error means that the replayed step is not the one that was run.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.drive import Drive, Parts, block_size, cut, total
from replay.trajectory import Transition
from tracer.filters import Filter

Vector = dict[str, Tensor]  # by parameter


@dataclass(frozen=True)
class Displacement:
    """``Δ_t`` in parts, each a vector by parameter, in the dtype of the test gradients."""

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
        sums = (sum(part[n].double() for part in self.parts if n in part) for n in names)
        return math.sqrt(sum(float(torch.as_tensor(s).square().sum()) for s in sums))


@dataclass(frozen=True)
class Division:
    """A step divided.

    Attributes:
        parts: ``Δ_t`` in parts.
        buffers: By parameter, the optimizer's buffer after the step in parts, float64.
        norm: Of what drove the step.
        largest: By parameter, the largest magnitude of ``rounding``; NaN if it holds one.
    """

    parts: Displacement
    buffers: dict[str, Parts]
    norm: float
    largest: dict[str, float]


def split(
    transition: Transition,
    driven: dict[str, Drive],
    filters: dict[str, Filter],
    buffers: dict[str, Parts],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Division:
    """Divide ``Δ_t``, in one pass over each parameter.

    Args:
        transition: The logged step.
        driven: What drives each parameter.
        filters: Of every parameter that moved.
        buffers: By parameter, before the step.
        device: Where to compute.
        dtype: Of the test gradients; None is that of the parameters.
    """
    result = Displacement({}, {}, {}, {})
    after, largest, squares = dict(buffers), {}, 0.0
    for name, old in transition.before.parameters.items():
        if old.numel() == 0:
            continue
        w, moved = (x.to(device) for x in (old, transition.after.parameters[name]))
        kept = torch.float64 if torch.float64 in (dtype, w.dtype) else torch.float32
        rule, drive = filters.get(name, Filter()), driven.get(name)
        found = _divided(w, moved, drive, rule, buffers.get(name, (None, None, None)), kept)
        for vector, move in zip(result.parts, found.moves, strict=True):
            if move is not None:
                vector[name] = move
        if name in filters and (rule.gain or name in buffers):
            after[name] = found.buffer
        largest[name] = found.largest
        squares += found.square
    return Division(result, after, math.sqrt(squares), largest)


@dataclass(frozen=True)
class _Divided:
    """One parameter: four moves, its buffer after the step, ``max |rounding|``, ``‖u‖²``."""

    moves: list[Tensor | None]
    buffer: Parts
    largest: float
    square: float


def _divided(
    w: Tensor, moved: Tensor, drive: Drive | None, rule: Filter, before: Parts, dtype: torch.dtype
) -> _Divided:
    """Divide one parameter's change; no ``drive`` means that the step left it out."""
    size = block_size(w)
    moves, after = _Vectors(w, dtype, size), _Vectors(w, torch.float64, size)
    diagonals, known = (
        zip(*(cut(x, size) for x in xs), strict=False) for xs in (rule.diagonals, before)
    )
    driven = itertools.repeat((None, None)) if drive is None else drive.blocks()
    ends: list[Tensor] = []
    squares = 0.0
    blocks = zip(cut(w, size), cut(moved, size), driven, diagonals, known, strict=False)
    for k, (old, new, us, pair, buffers) in enumerate(blocks):
        old = old.double()
        rest = old - new.double()
        if drive is not None:
            part = rule.with_diagonals(*pair)
            pairs = [part.forward(u, b) for u, b in zip((*us, None), buffers, strict=True)]
            found = [move for move, _ in pairs]
            if rule.decoupled:
                shrunk = old * rule.decoupled
                found[1] = shrunk if found[1] is None else found[1] + shrunk
            for number, (move, (_, buffer)) in enumerate(zip(found, pairs, strict=True)):
                if move is not None:
                    moves.put(number, k, move)
                    rest.sub_(move)
                if buffer is not None:
                    after.put(number, k, buffer)
            u = total(us)
            squares += 0.0 if u is None else float(torch.dot(u, u))
        moves.put(3, k, rest)
        ends += torch.aminmax(rest)
    largest = float(torch.stack(ends).abs().amax())
    data, regulariser, history, _ = after.found
    return _Divided(moves.found, (data, regulariser, history), largest, squares)


class _Vectors:
    """Four vectors of a shape, filled block by block; None where no block came."""

    def __init__(self, like: Tensor, dtype: torch.dtype, size: int) -> None:
        self._like, self._dtype, self._size = like, dtype, size
        self._blocks: list[tuple[Tensor, ...]] = [()] * 4
        self.found: list[Tensor | None] = [None] * 4

    def put(self, number: int, k: int, block: Tensor) -> None:
        """Copy block k of one of them."""
        if not self._blocks[number]:
            like = self._like
            self.found[number] = whole = torch.empty(
                like.shape, dtype=self._dtype, device=like.device
            )
            self._blocks[number] = torch.split(whole.view(-1), self._size)
        self._blocks[number][k].copy_(block)
