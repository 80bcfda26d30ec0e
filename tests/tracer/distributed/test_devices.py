"""Ranks on GPUs of their own, with NCCL; skipped where there are not two."""

from __future__ import annotations

import pytest
import torch

from replay import Replay
from tests.helpers.device_ranks import TASK
from tests.helpers.ranks import launch


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_run_on_two_gpus_replays_on_one(tmp_path):
    found, codes, errors = launch("tests.helpers.device_ranks", tmp_path, "nccl", "cuda")
    assert codes == [0, 0], errors
    assert found == [{"bitwise": True}] * 2
    verified = Replay(tmp_path / "run.h5", TASK, device="cuda").verify(progress=False)
    assert verified.steps == range(6)
