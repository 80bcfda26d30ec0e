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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from replay.evaluate.state import Transition
from replay.steps.effective_gradient import EffectiveGradient
from replay.vectors.blocks import Parts, block_size, cut, double, total
from replay.vectors.fused import alike, apart, joined
from replay.vectors.workspace import workspace
from tracer.rules.filter import Filter

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
        chosen = [{n: v for n, v in part.items() if n in names} for part in self.parts]
        others: Vector = {}
        for part in self.parts:
            for name in part.keys() - names:
                others[name] = others[name] + part[name] if name in others else part[name]
        return [*chosen, others]

    def norm(self) -> float:
        """Return ``‖Δ_t‖``."""
        names = dict.fromkeys(name for part in self.parts for name in part)
        sums = (sum(part[n].double() for part in self.parts if n in part) for n in names)
        return math.sqrt(sum(float(s.square().sum()) for s in sums if isinstance(s, Tensor)))


@dataclass(frozen=True)
class Division:
    """A step divided.

    Attributes:
        parts: ``Δ_t`` in parts.
        buffers: By parameter, the optimizer's buffer after the step in parts, float64.
        norm: Of the effective gradient.
        largest: By parameter, the largest magnitude of ``rounding`` in what was taken together with
            it; NaN if that holds one.
    """

    parts: Displacement
    buffers: dict[str, Parts]
    norm: float
    largest: dict[str, float]


def split(
    transition: Transition,
    gradients: dict[str, EffectiveGradient],
    filters: dict[str, Filter],
    buffers: dict[str, Parts],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Division:
    """Divide ``Δ_t``, in one pass over the parameters, small ones that move alike together.

    Args:
        transition: The logged step.
        gradients: The effective gradient of every parameter that moved.
        filters: Of every parameter that moved.
        buffers: By parameter, before the step.
        device: Where to compute.
        dtype: Of the test gradients; None is that of the parameters.
    """
    result = Displacement({}, {}, {}, {})
    after, largest, squares = dict(buffers), {}, 0.0
    nothing: Parts = (None, None, None)

    def kind(name: str) -> Hashable:
        gradient, rule = gradients.get(name), filters.get(name, Filter())
        diagonals, known = rule.diagonals, buffers.get(name, nothing)
        given = [x is None for x in (*diagonals, *known, *(gradient.vectors if gradient else ()))]
        numbers = (gradient.factor, gradient.decay) if gradient else None
        alone = name if rule.is_matrix else None
        return (name in filters, name in buffers, numbers, rule.numbers, alone, *given)

    moved = {n: w for n, w in transition.before.parameters.items() if w.numel()}
    for names, olds in alike(moved, kind):
        first, news = names[0], [transition.after.parameters[n] for n in names]
        gradient, rule = gradients.get(first), filters.get(first, Filter())
        if gradient is not None:
            gradient = gradient.with_vectors(*_joined([gradients[n].vectors for n in names]))
            rule = rule.with_diagonals(*_joined([filters[n].diagonals for n in names]))
        w, new = (joined(xs).to(device) for xs in (olds, news))
        known = _joined([buffers.get(n, nothing) for n in names])
        kept = torch.float64 if torch.float64 in (dtype, w.dtype) else torch.float32
        found = _divided(w, new, gradient, rule, known, kept)
        for vector, move in zip(result.parts, found.moves, strict=True):
            if move is not None:
                vector.update(zip(names, apart(move, olds), strict=True))
        if first in filters and (rule.gain or first in buffers):
            parts = ([None] * len(names) if b is None else apart(b, olds) for b in found.buffer)
            after.update(zip(names, zip(*parts, strict=True), strict=True))
        largest.update(dict.fromkeys(names, found.largest))
        squares += found.square
    return Division(result, after, math.sqrt(squares), largest)


def _joined(rows: Sequence[tuple[Tensor | None, ...]]) -> list[Tensor | None]:
    """Join the tensors of each column, all of which are there or none."""
    columns = ([x for x in column if x is not None] for column in zip(*rows, strict=True))
    return [joined(column) if column else None for column in columns]


@dataclass(frozen=True)
class _Divided:
    """Some parameters: four moves, its buffer after the step, ``max |rounding|``, ``‖u‖²``."""

    moves: list[Tensor | None]
    buffer: Parts
    largest: float
    square: float


def _divided(
    w: Tensor,
    moved: Tensor,
    gradient: EffectiveGradient | None,
    rule: Filter,
    before: Sequence[Tensor | None],
    dtype: torch.dtype,
) -> _Divided:
    """Divide a vector's change; no ``gradient`` means that the step left it out."""
    size = max(1, w.numel()) if rule.is_matrix else block_size(w)
    moves, after = _Vectors(w, dtype, size), _Vectors(w, torch.float64, size)
    diagonals, known = (
        zip(*(cut(x, size) for x in xs), strict=False) for xs in (rule.diagonals, before)
    )
    given = itertools.repeat((None, None)) if gradient is None else gradient.blocks(size)
    ends: list[Tensor] = []
    squares = 0.0
    blocks = zip(cut(w, size), cut(moved, size), given, diagonals, known, strict=False)
    for k, (old, new, us, pair, buffers) in enumerate(blocks):
        rest = double(old, "rest").sub_(double(new, "move"))
        if gradient is not None:
            u = total(us)
            squares += 0.0 if u is None else float(torch.dot(u, u))
            part = rule.with_diagonals(*pair)
            for number, (u, b) in enumerate(zip((*us, None), buffers, strict=True)):
                places = (
                    partial(workspace, "move", rest, rest.numel()),
                    partial(after.block, number, k),
                )
                decayed = double(old, "decay") if rule.behind and number == 1 else None
                move, _ = part.forward(u, b, *places, decayed)
                if rule.decoupled and number == 1:
                    shrunk = double(old, "decay").mul_(rule.decoupled)
                    move = shrunk if move is None else shrunk.add_(move)
                if move is not None:
                    moves.block(number, k).copy_(move)
                    rest.sub_(move)
        moves.block(3, k).copy_(rest)
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

    def block(self, number: int, k: int) -> Tensor:
        """Return block k of one of them, to be filled."""
        if not self._blocks[number]:
            like = self._like
            self.found[number] = whole = torch.empty(
                like.shape, dtype=self._dtype, device=like.device
            )
            self._blocks[number] = tuple(cut(whole, self._size))
        return self._blocks[number][k]
