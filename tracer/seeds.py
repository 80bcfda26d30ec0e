"""Examples of a data set whose random numbers come from a seed.

Torch's generator of the CPU, NumPy's and Python's are seeded for one example and put back, so that
data sets with random augmentation need no change. ``torch.initial_seed()`` is the seed meanwhile,
as in a worker process of a DataLoader, for those that make a generator of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tracer.records import ID, Seeds


def example(dataset: Any, key: Any, seeds: Seeds | None, identity: ID) -> Any:
    """Return ``dataset[key]``, drawn from the seed that the example has, if there are seeds."""
    if seeds is None:
        return dataset[key]
    with seeded(seeds.of(identity)):
        return dataset[key]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that data sets and collators draw from; put them back."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - data sets draw from it
    try:
        torch.default_generator.manual_seed(seed)  # not CUDA's: they are the model's
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
