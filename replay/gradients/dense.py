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
        products = (vectors.view(m * p, d) @ factor.inputs[:, 0].T).view(m, p, n)
        return (products * factor.deltas[:, 0].T).sum(1, dtype=torch.float64).T
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


def _materialised(factor: Factors) -> Tensor:
    return torch.bmm(factor.deltas.mT, factor.inputs).flatten(1)
