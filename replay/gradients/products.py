"""Inner products of per-example gradients, with a scale for each parameter, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from replay.gradients import factors as linear
from replay.gradients.examples import PerExample


def inner(left: PerExample, right: PerExample, scale: dict[str, float]) -> Tensor:
    """Return ``Σ_p scale_p ⟨g_i, h_j⟩_p`` for every pair, float64 ``(n, m)``.

    Args:
        left: Gradients ``g`` of n examples.
        right: Gradients ``h`` of m examples.
        scale: Factor of each parameter (a learning rate); absent or 0 leaves it out, as
            the step did.
    """
    result = left.losses.new_zeros(left.count, right.count, dtype=torch.float64)
    names = [n for n, factor in scale.items() if factor and n in left.total and n in right.total]
    for name in names:
        if name not in left.complete and name not in right.complete:
            result += scale[name] * _hooked_inner(left, right, name)
    both = [n for n in names if n in left.complete and n in right.complete]
    ours = [n for n in names if n in left.complete and n not in right.complete]
    theirs = [n for n in names if n in right.complete and n not in left.complete]
    if ours or both:
        for rows, gradients in left.blocks():
            for name in ours:
                result[rows] += scale[name] * _against(gradients[name], right, name)
            for columns, others in right.blocks() if both else ():
                for name in both:
                    product = gradients[name] @ others[name].T
                    result[rows, columns] += scale[name] * product
    for columns, others in right.blocks() if theirs else ():
        for name in theirs:
            result[:, columns] += scale[name] * _against(others[name], left, name).T
    return result


def _hooked_inner(left: PerExample, right: PerExample, name: str) -> Tensor:
    if name in left.factors:
        return linear.inner(left.factors[name], right.factors[name])
    return left.biases[name] @ right.biases[name].T


def _against(gradients: Tensor, hooked: PerExample, name: str) -> Tensor:
    """Return inner products of stored gradients ``(n, numel)`` with hooked ones, ``(n, m)``."""
    if name in hooked.biases:
        return gradients @ hooked.biases[name].T
    factors = hooked.factors[name]
    shape = (factors.deltas.shape[2], factors.inputs.shape[2])
    return torch.stack([factors.project(row.view(shape)) for row in gradients])


def project(examples: PerExample, directions: list[dict[str, Tensor]]) -> Tensor:
    """Return each example's inner product with each direction, float64 ``(k, n)``.

    Args:
        examples: Gradients of n examples.
        directions: k vectors by parameter; absent parameters are zero.
    """
    result = examples.losses.new_zeros(len(directions), examples.count, dtype=torch.float64)
    for k, direction in enumerate(directions):
        for name, vector in direction.items():
            if name in examples.factors:
                factor = examples.factors[name]
                result[k] += factor.project(vector.to(factor.inputs))
            elif name in examples.biases:
                rows = examples.biases[name]
                result[k] += rows @ vector.to(rows).flatten()
    if examples.complete:
        for block, gradients in examples.blocks():
            for name, gradient in gradients.items():
                for k, direction in enumerate(directions):
                    if name in direction:
                        result[k, block] += gradient @ direction[name].to(gradient).flatten()
    return result


def squared_norms(examples: PerExample, names: set[str]) -> Tensor:
    """Return ``‖g_i‖²`` over the named parameters, float64 ``(n,)``."""
    result = examples.losses.new_zeros(examples.count, dtype=torch.float64)
    for name, factor in examples.factors.items():
        if name in names:
            result += factor.squared_norms()
    for name, rows in examples.biases.items():
        if name in names:
            result += rows.double().square().sum(1)
    if examples.complete:
        for block, gradients in examples.blocks():
            for name, gradient in gradients.items():
                if name in names:
                    result[block] += gradient.double().square().sum(1)
    return result
