r"""Which rows of an operation's result belong to which example, and the proof of it.

With random signs and sizes ``r``, the gradients of ``Σ r_i c_i ℓ_i`` with respect to a result must
be ``r_i`` times those of ``Σ c_i ℓ_i``, row by row: then row i moves no other loss than ``ℓ_i``.
BatchNorm in train mode, losses over pairs and results that all examples share fail it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How flattened leading dimensions hold n examples: ``(outer, n, inner)``; 0 is what is left.

    Attributes:
        outer: Rows of other things before the examples.
        inner: Rows of each example that lie together.
    """

    outer: int
    inner: int

    def fits(self, size: int, n: int) -> bool:
        """Return whether so many rows can hold n examples like this."""
        if self.outer and self.inner:
            return self.outer * n * self.inner == size
        return size % (n * max(self.outer, self.inner, 1)) == 0

    def arrange(self, tensor: Tensor, leading: int, n: int) -> Tensor:
        """Return a tensor by example, ``(n, rows, ...)``.

        Args:
            tensor: Anything with the result's leading dimensions.
            leading: How many of them there are.
            n: The number of examples.
        """
        rest = tensor.shape[leading:]
        size = math.prod(tensor.shape[:leading])
        outer = self.outer or size // (n * self.inner)
        if outer == 1:
            return tensor.reshape(n, size // n, *rest)
        rows = tensor.reshape(outer, n, size // (outer * n), *rest)
        return rows.transpose(0, 1).reshape(n, size // n, *rest)


FIRST, LAST = Layout(1, 0), Layout(0, 1)


def prove(
    delta: Tensor, probe: Tensor, factors: Tensor, leading: int, tolerance: float
) -> tuple[Layout | None, bool]:
    """Find the layout of a result.

    Args:
        delta: Gradient of ``Σ c_i ℓ_i``, of the result's shape.
        probe: Gradient of ``Σ r_i c_i ℓ_i``.
        factors: ``r``, ``(n,)``.
        leading: How many leading dimensions may hold the examples.
        tolerance: Largest deviation, relative to the largest entry.

    Returns:
        The layout, or None if there is none; and whether it is the only one that fits what was
        seen (gradients that are zero prove nothing).
    """
    n, size = len(factors), math.prod(delta.shape[:leading])
    if not delta.numel():  # no row came here
        return None, False
    if n == 1:
        return FIRST, True
    limit = tolerance * largest(probe)
    flat, probed = delta.reshape(size, -1), probe.reshape(size, -1)
    found: list[Layout] = []
    for layout in _candidates(size, n):
        outer = layout.outer or size // (n * layout.inner)
        shape = (outer, n, size // (outer * n), flat.shape[1])
        expected = flat.view(shape) * factors.view(1, n, 1, 1)
        if bool(deviation(expected, probed.view(shape)).amax() <= limit):
            found.append(layout)
            if len(found) == 2:
                break
    return (found[0] if found else None), len(found) == 1


def _candidates(size: int, n: int) -> Iterator[Layout]:
    if n == 0 or size == 0 or size % n:
        return
    each = size // n
    yield FIRST
    if each > 1:
        yield LAST
    for outer in range(2, each):
        if each % outer == 0:
            yield Layout(outer, each // outer)


def deviation(found: Tensor, expected: Tensor) -> Tensor:
    """Return ``|found − expected|``; 0 where neither is finite, which is reported elsewhere."""
    gap = (found - expected).abs_()
    if math.isfinite(float(gap.sum())):
        return gap
    both = ~found.isfinite() & ~expected.isfinite()
    return gap.masked_fill_(both, 0)


def largest(tensor: Tensor) -> Tensor:
    """Return the largest finite magnitude."""
    found = torch.linalg.vector_norm(tensor, torch.inf)
    return found if found.isfinite() else tensor.abs().masked_fill(~tensor.isfinite(), 0).max()


def random_factors(count: int, like: Tensor, *, rounded: bool) -> Tensor:
    """Return ``r``: random signs, sizes in [1/2, 3/2], from a private generator.

    Args:
        count: n.
        like: Gives dtype and device.
        rounded: The backward pass rounds to half precision: sizes are powers of 2, from 1/8 to 8,
            which it multiplies by exactly.
    """
    generator = torch.Generator("cpu").manual_seed(count)
    sizes = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu") + 0.5
    if rounded:
        sizes = 2.0 ** (sizes.argsort() % 7 - 3)
    signs = torch.randint(0, 2, (count,), generator=generator, device="cpu") * 2 - 1
    return (sizes * signs).to(like)


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the relative rounding error allowed in a sum of products that is kept as a dtype.

    Half precision: twice its epsilon (bfloat16 1.6 %, float16 0.2 %).
    """
    exact = {torch.float64: 1e-10, torch.float32: 2e-5}
    return exact.get(dtype) or 2 * torch.finfo(dtype).eps


def is_half(dtype: torch.dtype) -> bool:
    """Return whether rounding is coarser than float32's."""
    return tolerance_of(dtype) > tolerance_of(torch.float32)
