"""The gradient of a step of several ranks: each rank's is added up before they are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from tracer.records import MicroBatch


def last_ones(micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Return the last micro-batch of each rank."""
    return [list(own)[-1] for _, own in groupby(micro_batches, lambda micro: micro.rank)]


class RankGradients:
    """The gradients of a step's ranks: each adds up its own before they are added.

    Args:
        parameters: Have the gradients.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters, self._rank = parameters, 0
        self._before: list[dict[str, Tensor]] = []

    def begin(self, rank: int) -> None:
        """Have the backward passes of a rank come next."""
        if rank != self._rank:
            self._rank = rank
            self._before.append(
                {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
            )
            for parameter in self._parameters.values():
                parameter.grad = None

    @torch.no_grad()
    def add_up(self) -> None:
        """Make the sum of all ranks' gradients what the parameters have."""
        for found in reversed(self._before):
            for name, gradient in found.items():
                last = self._parameters[name].grad
                self._parameters[name].grad = gradient if last is None else gradient + last
