"""A step that several causes would fit by its norms alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from replay import Replay
from tests.replay.steps.test_diagnosis import RULES, Mistakes
from tracer.errors import MismatchError


@pytest.mark.parametrize("label", [lambda y: torch.arange(len(y)) % 3, torch.zeros_like])
def test_norms_alone_explain_nothing(tmp_path, label):
    """A weight and a bias have gradients of one norm where inputs are of norm 1, and alike."""

    class Unit(nn.Module):
        def forward(self, x):
            return torch.full_like(x, 0.5)  # four inputs

    class Labels(Mistakes):
        def batch(self, task, ids):
            x, y = super().batch(task, ids)
            return x, label(y)

        @staticmethod
        def model():
            torch.manual_seed(0)
            return nn.Sequential(Unit(), nn.Linear(4, 16))

    known = Labels().run(tmp_path / "run.h5", RULES["sgd"])
    with pytest.raises(MismatchError, match=r"^step 0 .* does not reproduce") as raised:
        Replay(tmp_path / "run.h5", task=known).verify(progress=False)
    assert "clipped by itself" not in str(raised.value)
    assert "times the task's" not in str(raised.value)
