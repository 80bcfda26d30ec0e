"""The micro-batches of a step in turn, and the buffers that each one's forward pass finds.

Without ranks each finds what the one before has left. In a distributed run the first of each rank
finds those that the step began with, and what rank 0's leave goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from tracer.records import MicroBatch

Held = TypeVar("Held")


def in_turn(
    micro_batches: Sequence[MicroBatch], get: Callable[[], Held], put: Callable[[Held], object]
) -> Iterator[MicroBatch]:
    """Yield micro-batches, rank by rank; all of them have to be taken.

    Args:
        micro_batches: Of one step.
        get: Returns the buffers, which nothing changes afterwards.
        put: Puts them back.
    """
    if all(micro.rank == 0 for micro in micro_batches):
        yield from micro_batches
        return
    first, rank = get(), 0
    left: Held | None = None
    for micro in micro_batches:
        if micro.rank != rank:
            left, rank = get() if left is None else left, micro.rank
            put(first)
        yield micro
    if left is not None:
        put(left)


def in_turn_on(module: nn.Module, micro_batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
    """Yield micro-batches whose forward passes a module makes."""
    return in_turn(micro_batches, lambda: copies(module), lambda found: put_back(module, found))


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's buffers."""
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


@torch.no_grad()
def put_back(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Undo what a forward pass did to buffers; graphs may hold those that it left alone."""
    for name, buffer in module.named_buffers():
        if name in before and not torch.equal(buffer, before[name]):
            buffer.copy_(before[name])
