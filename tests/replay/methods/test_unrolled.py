"""The derivative of the counterfactual, against runs taken again with losses scaled a little."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from replay import Replay
from tests.helpers.rerun import RUNS, STEPS, TEST, TRAIN

ONE = torch.ones(TRAIN, dtype=torch.float64)


def unrolled(run, path, *, methods=("unrolled",), **how):
    replay = Replay(path, task=run.task(), **how)
    return replay.influence(list(range(TEST)), methods=methods, progress=False)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_central_differences(tmp_path, run):
    path = tmp_path / "run.h5"
    run.trained(ONE, path)
    found = unrolled(run, path).scores["unrolled"]
    directions = [torch.randn(TRAIN, generator=torch.Generator().manual_seed(2)).double()]
    directions += [torch.eye(TRAIN, dtype=torch.float64)[z] for z in (1, 4)]
    for direction in directions:
        expected = -run.differences(direction)
        size = np.abs(found * direction.numpy()).sum(1)
        assert np.all(np.abs(found @ direction.numpy() - expected) <= 1e-6 * size)
    assert STEPS > 3
