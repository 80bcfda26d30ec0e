"""Runs under autocast: rounding to bfloat16 is allowed for, and a real mismatch is still found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tracer import TracingOptimizer
from tracer.errors import MismatchError

DRAW = torch.Generator().manual_seed(0)
DATA = [(torch.randn(16, generator=DRAW), k % 4) for k in range(24)]


def build():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
    )


def losses(model, batch, dtype=torch.bfloat16):
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        found = model(batch[0])
    return F.cross_entropy(found.float(), batch[1], reduction="none")


def plainly(model, batch):
    return losses(model, batch, None)


CAST = Task(build, losses, DATA, DATA)
PLAIN = replace(CAST, loss=plainly)


def run(path, task, factor=1.0):
    """Train on the task's loss times a factor."""
    model = task.model()
    with TracingOptimizer(torch.optim.SGD(model.parameters(), 0.1), model, path) as optimizer:
        for t in range(3):
            ids = list(range(8 * t, 8 * t + 8))
            optimizer.zero_grad()
            batch = task.collate([task.train[i] for i in ids])
            (factor * task.loss(model, batch)).mean().backward()
            optimizer.step(batch_ids=ids)
    return path


@pytest.mark.parametrize("way", ["step", "gradient"])
def test_rounding_to_the_dtype_that_the_loss_casts_to_is_no_mismatch(tmp_path, way):
    """A factor stands for it, of that size; where nothing is cast, it is none."""
    found = Replay(run(tmp_path / "cast.h5", CAST, 1.00015), CAST)
    if way == "step":
        assert found.influence([0], methods=["tracin"], progress=False).scores["tracin"].any()
    assert found.verify(progress=False).steps == range(3)
    with pytest.raises(MismatchError, match="gradient norm of group 0 was") as said:
        Replay(run(tmp_path / "plain.h5", PLAIN, 1.00015), PLAIN).verify(progress=False)
    assert "the loss in the run was 1.00015 times the task's" in str(said.value)


def labelled_otherwise(task):
    return replace(task, train=[(x, (y + (k == 3)) % 4) for k, (x, y) in enumerate(task.train)])


REAL = {
    "a factor": (CAST, 1.01, CAST),
    "another label": (CAST, 1.0, labelled_otherwise(CAST)),
    "the replay does not cast": (CAST, 1.0, PLAIN),
}


@pytest.mark.parametrize(("made", "factor", "task"), REAL.values(), ids=REAL)
def test_a_real_mismatch_is_found(tmp_path, made, factor, task):
    path = run(tmp_path / "run.h5", made, factor)
    with pytest.raises(MismatchError, match=r"step \d of .* does not reproduce"):
        Replay(path, task).verify(progress=False)
