"""Inner products of per-example gradients: with each other, with vectors, with themselves.

Everything is summed over parameters, each with a scale, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from replay.gradients.forms.convolution import Convolved
from replay.gradients.forms.lookup import Lookup, common
from replay.gradients.forms.outer import Outer, formed, ghost, prefers_ghost
from replay.gradients.forms.per_example import PerExample
from replay.gradients.forms.piece import BLOCK, LARGE, Piece, Rows, blocks_of_rows, matrix_shape
from replay.vectors.workspace import room


def inner(left: PerExample, right: PerExample, scale: dict[str, float]) -> Tensor:
    """Return ``Σ_p scale_p ⟨g_i, h_j⟩_p`` for every pair, float64 ``(n, m)``.

    Args:
        left: Gradients ``g`` of n examples.
        right: Gradients ``h`` of m examples.
        scale: Factor of each parameter (a learning rate); absent or 0 leaves it out, as
            the step did.
    """
    result = left.losses.new_zeros(left.count, right.count, dtype=torch.float64)
    chosen = {n: f for n, f in scale.items() if f and n in left.names and n in right.names}
    for ours, mine in _parts(left, chosen):
        for theirs, others in _parts(right, chosen):
            block = result[ours, theirs]
            for name in mine.keys() & others.keys():
                block += chosen[name] * inner_pieces(mine[name], others[name])
    return result


def _parts(
    examples: PerExample, chosen: dict[str, float]
) -> Iterator[tuple[slice, dict[str, list[Piece]]]]:
    """Yield stored pieces of all examples, then of blocks what is computed anew."""
    stored = {name: pieces for name, pieces in examples.pieces.items() if name in chosen}
    if stored:
        yield slice(0, examples.count), stored
    if any(name in chosen for name in examples.complete):
        for rows, gradients in examples.blocks():
            yield (
                rows,
                {
                    name: [Rows(g, (g.shape[1], 1))]
                    for name, g in gradients.items()
                    if name in chosen
                },
            )


def inner_pieces(left: list[Piece], right: list[Piece]) -> Tensor:
    """Return ``⟨g_i, h_j⟩`` of one parameter for every pair, float64 ``(n, m)``."""
    for side, other in ((left, right), (right, left)):
        if len(side) == 1 and isinstance(side[0], Convolved):
            found = [inner_pieces([piece], other) for _, piece in side[0].pieces()]
            return torch.cat(found) if side is left else torch.cat([f.T for f in found], 1)
    if len(left) == 1 and len(right) == 1:
        mine, theirs = left[0], right[0]
        if isinstance(mine, Rows) and isinstance(theirs, Rows):
            return (mine.rows @ theirs.rows.T).double()
        if isinstance(mine, Outer) and isinstance(theirs, Outer) and mine.aligned(theirs):
            return ghost(mine, theirs) if prefers_ghost(mine, theirs) else formed(mine, theirs)
        if isinstance(mine, Lookup) and isinstance(theirs, Lookup):
            return _looked_up(mine, theirs)
    return _formed(left, right)


def _looked_up(left: Lookup, right: Lookup) -> Tensor:
    tokens = common(left, right)
    result = left.deltas.new_zeros(left.count, right.count, dtype=torch.float64)
    size = max(1, room(BLOCK) // max(1, (left.count + right.count) * left.deltas.shape[2]))
    for some in torch.split(tokens, size) if len(tokens) else ():
        result += left.compact(some, "left") @ right.compact(some, "right").T
    return result


def _formed(left: list[Piece], right: list[Piece]) -> Tensor:
    """Form both sides' gradients, a block of the parameter's rows at a time."""
    shape, n, m = _shape(left, right), left[0].count, right[0].count
    result = torch.zeros(n, m, dtype=torch.float64, device=left[0].tensors[0].device)
    for rows in blocks_of_rows(shape, n + m):
        result += _dense(left, rows, shape, "left") @ _dense(right, rows, shape, "right").T
    return result


def _shape(left: list[Piece], right: list[Piece]) -> tuple[int, int]:
    """Return the shape in which both sides are seen: gradients computed anew have no columns."""
    return min(left[0].shape, right[0].shape)


def _dense(pieces: list[Piece], rows: slice, shape: tuple[int, int], role: str = "left") -> Tensor:
    """Return some rows of a sum of pieces; the next call of the same role may overwrite it."""
    if len(pieces) == 1 and isinstance(pieces[0], Outer) and pieces[0].shape == shape:
        return pieces[0].dense(rows, role)
    if pieces[0].shape != shape:  # (R C, 1): rows of the other side's
        rows = slice(rows.start * shape[1], rows.stop * shape[1])
    found = pieces[0].dense(rows)
    for piece in pieces[1:]:
        found = found + piece.dense(rows)
    return found


def with_vectors(pieces: list[Piece], vectors: Tensor) -> Tensor:
    """Return products of one parameter's gradients with vectors, float64 ``(n, m)``.

    Args:
        pieces: Gradients of n examples.
        vectors: ``(m, numel)``.
    """
    piece = pieces[0]
    if len(pieces) == 1 and isinstance(piece, Convolved):
        return torch.cat([with_vectors([formed], vectors) for _, formed in piece.pieces()])
    (total, d), n, m = piece.shape, piece.count, len(vectors)
    if len(pieces) == 1 and isinstance(piece, Outer) and piece.single:
        products = (piece.inputs[:, 0] @ vectors.view(m * total, d).T).view(n, m, total)
        return torch.bmm(products, piece.deltas.mT)[:, :, 0].double()
    result = vectors.new_zeros(n, m, dtype=torch.float64)
    for rows in blocks_of_rows(piece.shape, n, BLOCK):
        part = vectors[:, rows.start * d : rows.stop * d]
        result += _dense(pieces, rows, piece.shape) @ part.T
    return result


def is_cheap(pieces: list[Piece]) -> bool:
    """Return whether products with few vectors cost as much a vector as with many."""
    return len(pieces) == 1 and isinstance(pieces[0], Outer) and pieces[0].single


def complete_with_vectors(examples: PerExample, vectors: dict[str, Tensor]) -> Tensor:
    """Return the same, summed over parameters that are computed anew; each is passed once."""
    m = len(next(iter(vectors.values())))
    result = examples.losses.new_zeros(examples.count, m, dtype=torch.float64)
    for block, gradients in examples.blocks():
        for name, vector in vectors.items():
            result[block] += gradients[name] @ vector.T
    return result


def project(examples: PerExample, directions: list[dict[str, Tensor]]) -> Tensor:
    """Return each example's inner product with each direction, float64 ``(k, n)``.

    Args:
        examples: Gradients of n examples.
        directions: k vectors by parameter; absent parameters are zero.
    """
    result = examples.losses.new_zeros(len(directions), examples.count, dtype=torch.float64)
    for k, direction in enumerate(directions):
        for name, vector in direction.items():
            for piece in examples.pieces.get(name, ()):
                result[k] += _projected(piece, vector.reshape(piece.shape))
    if any(name in direction for direction in directions for name in examples.complete):
        for block, gradients in examples.blocks():
            for name, gradient in gradients.items():
                for k, direction in enumerate(directions):
                    if name in direction:
                        result[k, block] += gradient @ direction[name].to(gradient).flatten()
    return result


def _projected(piece: Piece, direction: Tensor) -> Tensor:
    """Project some examples at a time: temporaries are as large as what a piece stores."""
    each = sum(tensor.numel() for tensor in piece.tensors) // max(1, piece.count)
    size = max(1, room(LARGE) // max(1, each))
    if size >= piece.count:
        return piece.project(direction)
    cut = (piece.select(slice(k, k + size)) for k in range(0, piece.count, size))
    return torch.cat([some.project(direction) for some in cut])


def squared_norms(examples: PerExample, names: set[str]) -> Tensor:
    """Return ``‖g_i‖²`` over the named parameters, float64 ``(n,)``."""
    return weighted_squares(examples, dict.fromkeys(names & examples.names, 1.0))


def weighted_squares(examples: PerExample, weights: dict[str, Tensor | float]) -> Tensor:
    """Return ``Σ_k weights_k g_ik²`` over some parameters, float64 ``(n,)``.

    Args:
        examples: Gradients of n examples.
        weights: By parameter, one number or one for each element, ``(numel,)``.
    """
    result = examples.losses.new_zeros(examples.count, dtype=torch.float64)
    anew = {name: weight for name, weight in weights.items() if name in examples.complete}
    for name, weight in weights.items():
        if name in examples.pieces:
            result += _squares(examples.pieces[name], weight)
    for block, gradients in examples.blocks() if anew else ():
        for name, weight in anew.items():
            shape = matrix_shape((gradients[name].shape[1],))
            result[block] += _squares([Rows(gradients[name], shape)], weight)
    return result


def _squares(pieces: list[Piece], weight: Tensor | float) -> Tensor:
    piece = pieces[0]
    if len(pieces) == 1 and not isinstance(weight, Tensor):
        return piece.squared_norms() * weight
    if len(pieces) == 1 and isinstance(piece, Convolved):
        return torch.cat([_squares([formed], weight) for _, formed in piece.pieces()])
    if len(pieces) == 1 and isinstance(piece, Outer) and piece.single:
        deltas, inputs = (x[:, 0].double().square() for x in (piece.deltas, piece.inputs))
        return ((deltas @ torch.as_tensor(weight).view(piece.shape)) * inputs).sum(1)
    result = torch.zeros(piece.count, dtype=torch.float64, device=piece.tensors[0].device)
    for rows in blocks_of_rows(piece.shape, piece.count):
        squares = _dense(pieces, rows, piece.shape).double().square()
        if isinstance(weight, Tensor):
            result += squares @ weight[rows.start * piece.shape[1] : rows.stop * piece.shape[1]]
        else:
            result += squares.sum(1) * weight
    return result
