"""The same examples in other company: neither values nor gradients may change with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from replay.gradients.proof.agreement import coarsest
from replay.gradients.proof.forward_pass import Pass, gradient
from replay.gradients.proof.independence import SMALL, norm, some_of
from replay.gradients.proof.layout import random_factors

Company = list[list[int]]


def apart(n: int, turn: int) -> Company:
    """Return n examples in other company: one alone, the others apart and in another order."""
    return _halved([turn % n], n)


def some_alone(n: int) -> Company:
    """Return n examples, a few of them alone, the others apart and in another order."""
    return _halved(some_of(n), n)


def _halved(alone: Sequence[int], n: int) -> Company:
    rest = [k for k in reversed(range(n)) if k not in alone]
    return [some for some in (*([k] for k in alone), rest[::2], rest[1::2]) if some]


def are_same(
    found: Pass,
    again: Callable[[list[int]], Tensor],
    company: Company,
    is_close: Callable[[Tensor, list[int]], bool],
) -> bool:
    """Return whether examples have the same losses and gradients in other company.

    Gradients of all are compared as one sum with random signs and sizes: one backward pass for each
    forward pass. A rounding error can flip a ReLU, so they may differ by the root of the rounding.

    Args:
        found: The pass with all of them; its graph is used up.
        again: Runs some of them.
        company: Who is together.
        is_close: Whether losses of some are what they should be, but for rounding.
    """
    factors = random_factors(len(found.losses), found.losses, rounded=False)
    targets = list(found.parameters.values())
    if not is_close(found.losses, list(range(len(factors)))):
        return False
    gap = _gradient(found.losses, factors, targets)
    sizes = [norm(gap)]
    for some in company:
        losses = again(some)
        if not is_close(losses, some):
            return False
        own = _gradient(losses, factors[some], targets)
        sizes.append(norm(own))
        gap = [mine - other for mine, other in zip(gap, own, strict=True)]
    size = max(sizes[0], math.hypot(*sizes[1:]))
    # what is not finite is reported elsewhere
    return not norm(gap) > coarsest(found) ** 0.5 * (size + SMALL)


def _gradient(losses: Tensor, factors: Tensor, targets: list[Tensor]) -> list[Tensor]:
    """Return the gradient of a weighted sum of losses with respect to each target."""
    if not targets:
        return []
    with torch.enable_grad():
        total = losses @ factors
    return gradient(total, targets, retain=False)
