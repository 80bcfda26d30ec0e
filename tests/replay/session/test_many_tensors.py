"""What a replay does for each parameter does not grow with their number: counted, not timed."""

from __future__ import annotations

import cProfile

import pytest
import torch
from torch import nn

from replay import Replay, Task
from tests.helpers.places import ROOT
from tracer import TracingOptimizer

DRAW = torch.Generator().manual_seed(0)
DATA = [(torch.randn(3, generator=DRAW), torch.tensor(k % 3)) for k in range(8)]
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


class Scales(nn.Module):
    """A model with many small tensors."""

    def __init__(self, count):
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(3)) for _ in range(count)])

    def forward(self, x):
        for scale in self.scales:
            x = x * scale
        return x


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def calls(count, make, path):
    """Return how many functions a traced run and its replay call."""
    task = Task(lambda: Scales(count), loss, DATA, DATA)
    model = task.model()
    with cProfile.Profile() as traced, TracingOptimizer(make(model.parameters()), model, path) as o:
        for _ in range(3):
            o.zero_grad()
            loss(model, task.collate(DATA[:4])).mean().backward()
            o.step(batch_ids=[0, 1, 2, 3])
    run = Replay(path, task)
    with cProfile.Profile() as replayed:
        run.influence([5, 6], methods=("tracin",), progress=False)
    return [ours(profile) for profile in (traced, replayed)]


def ours(profile):
    """Return how often functions of the packages were called: no others, nor what memory frees."""
    files = tuple(str(ROOT / package) for package in ("tracer", "replay"))
    return sum(
        entry.callcount
        for entry in profile.getstats()
        if not isinstance(entry.code, str) and entry.code.co_filename.startswith(files)
    )


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_tracing_and_replaying_grow_linearly(tmp_path, make):
    calls(2, make, tmp_path / "first.h5")  # what is done once in a process
    few, more, many = (calls(n, make, tmp_path / f"{n}.h5") for n in (10, 20, 40))
    for a, b, c in zip(few, more, many, strict=True):
        assert c - b < 2.01 * (b - a)
