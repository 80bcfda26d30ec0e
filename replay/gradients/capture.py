r"""Hooks that keep a Linear layer's inputs and outputs, and the proof that rows are examples.

Factors are right only where row i of a layer's output moves no other loss than ``ℓ_i``. That is
checked, not assumed: with random signs and sizes ``r``, the output gradients of
``Σ r_i c_i ℓ_i`` must be ``r_i`` times those of ``Σ c_i ℓ_i``, row by row. BatchNorm, losses
over pairs and layers whose first dimension is something else fail it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass(frozen=True)
class Call:
    """One call of a hooked layer: its parameters' names, its input, where its output was made.

    The edge is taken at once: an in-place activation turns the output into something else.
    """

    weight: str
    bias: str | None
    inputs: Tensor
    output: GradientEdge


@contextmanager
def linear_calls(model: nn.Module, names: dict[int, str]) -> Iterator[list[Call]]:
    """Record every call of a plain ``nn.Linear`` while the context lasts.

    Args:
        model: The model.
        names: Name of each parameter of interest, by ``id``.
    """
    calls: list[Call] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if not arguments or not isinstance(output, Tensor) or not output.requires_grad:
            return
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        name = names.get(id(weight))
        if name is not None:
            edge = get_gradient_edge(output)
            calls.append(Call(name, names.get(id(bias)), arguments[0].detach(), edge))

    handles = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if type(module) is nn.Linear and "weight" in module._parameters
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def rows_of_examples(
    call: Call, delta: Tensor, probe: Tensor, factors: Tensor, tolerance: float
) -> tuple[Tensor, Tensor] | None:
    """Lay a call out by example, if its rows are examples.

    Args:
        call: The recorded call.
        delta: Output gradient of ``Σ c_i ℓ_i``, shape of the output.
        probe: Output gradient of ``Σ r_i c_i ℓ_i``.
        factors: ``r``, ``(n,)``.
        tolerance: Largest deviation, relative to the largest entry.

    Returns:
        Inputs ``(n, T, d)`` and output gradients ``(n, T, p)``, or None if no dimension of
        the output (nor its first one, split in n) holds the examples.
    """
    n = len(factors)
    leading = delta.shape[:-1]
    scale = largest(probe)
    for shape, dim in _layouts(leading, n):
        rows = delta.reshape(*shape, delta.shape[-1])
        along = factors.reshape([n if k == dim else 1 for k in range(rows.dim())])
        if deviation(probe.reshape(rows.shape), rows * along).max() <= tolerance * scale:
            inputs = call.inputs.reshape(*shape, call.inputs.shape[-1])
            return _examples_first(inputs, dim, n), _examples_first(rows, dim, n)
    return None


def _layouts(leading: Sequence[int], n: int) -> Iterator[tuple[list[int], int]]:
    """Yield ways to read a layer's leading shape, each with the dimension of the examples."""
    if n == 1:
        yield [1, *leading], 0
        return
    for dim, size in enumerate(leading):
        if size == n:
            yield list(leading), dim
    if leading and leading[0] % n == 0 and leading[0] > n:
        yield [n, leading[0] // n, *leading[1:]], 0  # (n T, ·), examples outermost
        yield [leading[0] // n, n, *leading[1:]], 1  # (T n, ·), examples innermost


def _examples_first(tensor: Tensor, dim: int, n: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(n, -1, tensor.shape[-1])


def deviation(found: Tensor, expected: Tensor) -> Tensor:
    """Return ``|found − expected|``; 0 where neither is finite, which is reported elsewhere."""
    gap = (found - expected).abs_()
    if math.isfinite(float(gap.sum())):
        return gap
    both = ~found.isfinite() & ~expected.isfinite()
    return gap.masked_fill(both, 0)


def largest(tensor: Tensor) -> Tensor:
    """Return the largest finite magnitude."""
    found = torch.linalg.vector_norm(tensor, torch.inf)
    return found if found.isfinite() else tensor.abs().masked_fill(~tensor.isfinite(), 0).max()


def random_factors(count: int, like: Tensor) -> Tensor:
    """Return ``r`` for the check: random signs, sizes in [1/2, 3/2], from a private generator."""
    generator = torch.Generator().manual_seed(count)
    sizes = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (sizes * signs).to(like)
