r"""Gradients of convolutions, in any number of dimensions, with strides, dilation and groups.

    g_i[r, (c, k)] = Σ_o δ_i[r, o] a_i[c, stride o + dilation k − padding]

is a sum of outer products over the output's places o, so a convolution is a Linear layer on its
windows; these are ``K`` times as large as the input and are formed for a few examples at a time.
In a transposed convolution input and output change places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn import functional as F

from replay.gradients.forms.cuts import BLOCK, LARGE
from replay.gradients.forms.dense import Dense, matrices
from replay.gradients.forms.form import Form
from replay.gradients.forms.outer_products import OuterProducts
from replay.vectors.workspace import room

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Geometry:
    """How windows lie, one number for each dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def windows(self, images: Tensor, places: Sequence[int]) -> Tensor:
        """Return every window of images ``(N, C, *S)``, ``(N, C, K, O)``."""
        pads = [width for one in reversed(self.padding) for width in (one, one)]
        padded = F.pad(images, pads) if any(pads) else images
        n, channels = padded.shape[:2]
        strides = padded.stride()
        view = padded.as_strided(
            (n, channels, *self.kernel, *places),
            (
                *strides[:2],
                *(s * d for s, d in zip(strides[2:], self.dilation, strict=True)),
                *(s * d for s, d in zip(strides[2:], self.stride, strict=True)),
            ),
        )
        return view.reshape(n, channels, math.prod(self.kernel), math.prod(places))

    def convolve(self, images: Tensor, weight: Tensor, places: Sequence[int]) -> Tensor:
        """Return the convolution of images with a weight, cut to the output's places."""
        found = _CONVOLVE[len(self.kernel)](
            images,
            weight,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        for dim, size in enumerate(places):
            found = found.narrow(dim + 2, 0, size)
        return found


@dataclass(frozen=True)
class Convolved(Form):
    """Gradients of one weight ``(R, C K)``.

    >>> windows = Geometry((2,), (1,), (0,), (1,), 1)
    >>> g = Convolved(torch.arange(6.0).view(2, 1, 1, 3), torch.ones(2, 1, 2, 2), windows)
    >>> torch.equal(g.inner(g), (g.dense(slice(0, 2)) @ g.dense(slice(0, 2)).T).double())
    True

    Attributes:
        images: ``a``, ``(n, F, C groups, *S)``: what windows are taken of.
        deltas: ``δ``, ``(n, F, R, *O)``.
        geometry: How.
    """

    images: Tensor
    deltas: Tensor
    geometry: Geometry

    @property
    def count(self) -> int:
        """N."""
        return self.images.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C K)``."""
        channels = self.images.shape[2] // self.geometry.groups
        return self.deltas.shape[2], channels * math.prod(self.geometry.kernel)

    @property
    def places(self) -> int:
        """T: windows of an example."""
        return self.deltas.shape[1] * math.prod(self.deltas.shape[3:])

    @property
    def tensors(self) -> list[Tensor]:
        """Images and output gradients."""
        return [self.images, self.deltas]

    def select(self, examples: Tensor | slice) -> Convolved:
        """Return some examples' images."""
        return Convolved(self.images[examples], self.deltas[examples], self.geometry)

    def unfolded(self) -> OuterProducts | Dense:
        """Return the same with its windows; grouped ones as whole gradients."""
        n, folded, rows = self.deltas.shape[:3]
        groups, (_, d) = self.geometry.groups, self.shape
        windows = self.geometry.windows(self.images.flatten(0, 1), self.deltas.shape[3:])
        if groups == 1 and folded == 1:
            deltas = self.deltas.flatten(3)[:, 0].mT
            return OuterProducts(windows.flatten(1, 2).mT, deltas, 0, rows)
        inputs = windows.reshape(n, folded, groups, d, -1).permute(0, 2, 1, 4, 3)
        deltas = self.deltas.flatten(3).reshape(n, folded, groups, rows // groups, -1)
        deltas = deltas.permute(0, 2, 3, 1, 4)
        inputs = inputs.reshape(n * groups, -1, d)  # (n G, F O, d)
        deltas = deltas.reshape(n * groups, rows // groups, -1)
        if groups == 1:
            return OuterProducts(inputs, deltas.mT, 0, rows)
        return matrices(torch.bmm(deltas, inputs).reshape(n, rows, d), self.shape)

    def blocks(self) -> Iterator[OuterProducts | Dense]:
        """Yield some examples at a time: whole gradients where many windows are larger."""
        rows, d = self.shape
        windows = self.count * self.places * d * self.geometry.groups
        if rows > self.places or windows <= room(BLOCK):
            yield from self._windows(LARGE)
            return
        for some in self._slices(LARGE, rows * d):
            yield matrices(self.select(some).dense(slice(0, rows)), self.shape)

    def _windows(self, size: int) -> Iterator[OuterProducts | Dense]:
        """Yield blocks of examples, each with windows of about so many elements."""
        each = self.places * self.shape[1] * self.geometry.groups
        for some in self._slices(size, each):
            yield self.select(some).unfolded()

    def _slices(self, size: int, each: int) -> list[slice]:
        step = max(1, room(size) // max(1, each))
        return [slice(k, min(k + step, self.count)) for k in range(0, self.count, step)]

    def dense(self, rows: slice, role: str | None = None) -> Tensor:
        """Return some rows of each gradient."""
        return torch.cat([block.dense(rows) for block in self._windows(BLOCK)])

    def summed(self) -> Tensor:
        """Return the sum of all gradients."""
        return reduce(add, (block.summed() for block in self._windows(BLOCK)))

    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction: a convolution with it."""
        geometry, rows = self.geometry, self.shape[0]
        weight = direction.to(self.images).view(rows, -1, *geometry.kernel)
        moved = geometry.convolve(self.images.flatten(0, 1), weight, self.deltas.shape[3:])
        products = moved.view(self.deltas.shape) * self.deltas
        return products.flatten(1).sum(1, dtype=torch.float64)

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        """Return products with a vector from either side: a convolution with one filter."""
        geometry, (n, folded, rows) = self.geometry, self.deltas.shape[:3]
        one = right.to(self.images).view(1, -1, *geometry.kernel)
        weight = one.expand(geometry.groups, *one.shape[1:])  # for each group the same
        moved = geometry.convolve(self.images.flatten(0, 1), weight, self.deltas.shape[3:])
        deltas = self.deltas.reshape(n * folded * geometry.groups, rows // geometry.groups, -1)
        factors = left.to(deltas).view(geometry.groups, 1, -1).repeat(n * folded, 1, 1)
        products = torch.bmm(factors, deltas)[:, 0] * moved.reshape(len(deltas), -1)
        return products.view(n, -1).sum(1)

    def squared_norms(self, scale: float = 1.0) -> Tensor:
        """Return squared norms."""
        return torch.cat([block.squared_norms(scale) for block in self.blocks()])

    def times(self, other: Form, role: str | None = None) -> Tensor | None:
        """Multiply with any form, a block of examples at a time."""
        result, start = self._zeros(self.count, other.count, role=role), 0
        for block in self.blocks():
            result[start : start + block.count] = block.inner(other, f"block of {role}")
            start += block.count
        return result

    def with_vectors(self, vectors: Tensor) -> Tensor:
        """Return inner products with vectors."""
        return torch.cat([block.with_vectors(vectors) for block in self.blocks()])

    def weighted_squares(self, weight: Tensor) -> Tensor:
        """Return weighted squares."""
        return torch.cat([block.weighted_squares(weight) for block in self.blocks()])
