"""Gradients as plain rows, and their products with many dense vectors at once."""

from __future__ import annotations

import torch
from torch import Tensor

from replay.gradients.examples import PerExample
from replay.gradients.factors import Factors

_BLOCK = 1 << 24  # elements of materialised gradients


def rows(examples: PerExample, name: str, chosen: Tensor) -> Tensor:
    """Return some examples' gradients of one parameter, ``(n, numel)``."""
    if name in examples.factors:
        return _materialised(examples.factors[name].select(chosen))
    if name in examples.biases:
        return examples.biases[name][chosen]
    whole = torch.cat([gradients[name] for _, gradients in examples.blocks()])
    return whole[chosen]


def is_cheap(examples: PerExample, name: str) -> bool:
    """Return whether products with few vectors cost as much a vector as with many."""
    factor = examples.factors.get(name)
    return factor is not None and factor.inputs.shape[1] == 1


def inner(examples: PerExample, name: str, vectors: Tensor) -> Tensor:
    """Return products of a hooked parameter's gradients with vectors, float64 ``(n, m)``.

    Args:
        examples: Gradients of n examples.
        name: A parameter that does not take the complete way.
        vectors: ``(m, numel)``.
    """
    if name in examples.biases:
        return (examples.biases[name] @ vectors.T).double()
    factor = examples.factors[name]
    n, tokens, d = factor.inputs.shape
    m, p = len(vectors), factor.deltas.shape[2]
    if tokens == 1:
        products = (factor.inputs[:, 0] @ vectors.view(m * p, d).T).view(n, m, p)
        return torch.bmm(products, factor.deltas.mT)[:, :, 0].double()
    size = max(1, _BLOCK // (p * d))
    parts = [
        _materialised(Factors(inputs, deltas)) @ vectors.T
        for inputs, deltas in zip(
            torch.split(factor.inputs, size), torch.split(factor.deltas, size), strict=True
        )
    ]
    return torch.cat(parts).double()


def inner_complete(examples: PerExample, vectors: dict[str, Tensor]) -> Tensor:
    """Return the same, summed over parameters that take the complete way; each is passed once."""
    m = len(next(iter(vectors.values())))
    result = examples.losses.new_zeros(examples.count, m, dtype=torch.float64)
    for block, gradients in examples.blocks():
        for name, vector in vectors.items():
            result[block] += gradients[name] @ vector.T
    return result


def weighted_squares(examples: PerExample, weights: dict[str, Tensor | float]) -> Tensor:
    """Return ``Σ_k weights_k g_ik²`` over some parameters, float64 ``(n,)``.

    Args:
        examples: Gradients of n examples.
        weights: By parameter, one number or one for each element, ``(numel,)``.
    """
    result = examples.losses.new_zeros(examples.count, dtype=torch.float64)
    complete = {}
    for name, weight in weights.items():
        if name in examples.biases:
            result += _squares(examples.biases[name], weight)
        elif name in examples.factors:
            result += _factor_squares(examples.factors[name], weight)
        else:
            complete[name] = weight
    for block, gradients in examples.blocks() if complete else ():
        for name, weight in complete.items():
            result[block] += _squares(gradients[name], weight)
    return result


def _factor_squares(factor: Factors, weight: Tensor | float) -> Tensor:
    if not isinstance(weight, Tensor):
        return factor.squared_norms() * weight
    p, d = factor.deltas.shape[2], factor.inputs.shape[2]
    if factor.inputs.shape[1] == 1:
        deltas, inputs = (x[:, 0].double().square() for x in (factor.deltas, factor.inputs))
        return ((deltas @ weight.view(p, d)) * inputs).sum(1)
    size = max(1, _BLOCK // (p * d))
    pairs = zip(torch.split(factor.inputs, size), torch.split(factor.deltas, size), strict=True)
    return torch.cat([_squares(_materialised(Factors(a, b)), weight) for a, b in pairs])


def _squares(rows: Tensor, weight: Tensor | float) -> Tensor:
    squares = rows.double().square()
    return squares @ weight if isinstance(weight, Tensor) else squares.sum(1) * weight


def _materialised(factor: Factors) -> Tensor:
    if factor.inputs.shape[1] == 1:
        return (factor.deltas.mT * factor.inputs).flatten(1)
    return torch.bmm(factor.deltas.mT, factor.inputs).flatten(1)
