"""What one rank says of a step: its micro-batches, and where its generators are then."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracer.records import MicroBatch, RandomState


@dataclass(frozen=True)
class Part:
    """A rank's part of a step.

    Attributes:
        index: ``t``.
        micro_batches: The rank's own.
        after: Its generators after the step.
    """

    index: int
    micro_batches: tuple[MicroBatch, ...]
    after: RandomState


def packed(part: Part) -> bytes:
    """Return a part as bytes; they go from one process of a job to another, and to no file."""
    batches = [
        (m.ids, _plain(m.coefficients), raw(m.random_state), m.payload and m.payload())
        for m in part.micro_batches
    ]
    return pickle.dumps((part.index, batches, raw(part.after)), pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes, rank: int, devices: Sequence[int]) -> Part:
    """Return the part of a rank.

    Args:
        data: What ``packed`` returned there.
        rank: Whose it is.
        devices: This rank's CUDA devices, which stand for that one's in the log.
    """
    index, batches, after = pickle.loads(data)
    found = [
        MicroBatch(
            ids,
            _coefficients(weights, len(ids)),
            random_state(state, devices),
            None if payload is None else partial(bytes, payload),
            rank,
        )
        for ids, weights, state, payload in batches
    ]
    last = random_state(after, devices)
    assert last is not None
    return Part(index, tuple(found), last)


def raw(state: RandomState | None) -> list[bytes] | None:
    """Return a random state as bytes."""
    return None if state is None else [one.numpy().tobytes() for one in state.all]


def random_state(states: list[bytes] | None, devices: Sequence[int]) -> RandomState | None:
    """Return a random state of the bytes that ``raw`` made of one."""
    if states is None:
        return None
    cpu, *cuda = (torch.from_numpy(np.frombuffer(one, np.uint8).copy()) for one in states)
    return RandomState(cpu, dict(zip(devices, cuda, strict=True)))


def _plain(coefficients: Tensor) -> Any:
    values = coefficients.tolist() if coefficients.stride() != (0,) else coefficients[:1].tolist()
    return values[0] if len(values) == 1 else values


def _coefficients(found: Any, count: int) -> Tensor:
    values = torch.tensor(found, dtype=torch.float64, device="cpu")
    return values.expand(count) if values.dim() == 0 else values
