"""What ``SyncBatchNorm`` makes of a step: one batch of what all ranks have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby

import torch

from tracer.errors import TracingError
from tracer.records import MicroBatch

DRAWN = (
    "the model draws random numbers in its forward pass and has SyncBatchNorm layers, which make "
    "one batch of what all ranks have: a replay draws for that batch what no rank drew, so that "
    "this run will not reproduce.\n"
    "1. Leave out dropout, or use BatchNorm, which takes each rank's examples for itself."
)


def coupled(found: Sequence[MicroBatch], t: int) -> tuple[MicroBatch, ...]:
    """Return the micro-batches of step ``t`` as one for each forward pass of all ranks.

    Args:
        found: Rank by rank.
        t: For messages.

    Raises:
        TracingError: The ranks have different numbers of them.
    """
    ranks = [list(own) for _, own in groupby(found, lambda micro: micro.rank)]
    if len({len(own) for own in ranks}) > 1:
        raise TracingError(
            f"the ranks have {sorted({len(own) for own in ranks})} micro-batches in step {t}, and "
            "SyncBatchNorm needs as many on each"
        )
    return tuple(_joined(some) for some in zip(*ranks, strict=True))


def _joined(some: Sequence[MicroBatch]) -> MicroBatch:
    ids = tuple(chain.from_iterable(micro.ids for micro in some))
    return MicroBatch(ids, torch.cat([m.coefficients for m in some]), some[0].random_state)
