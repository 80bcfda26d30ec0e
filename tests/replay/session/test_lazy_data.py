"""Data that are made when asked for: how many are alive, and what a dry run meets."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tests.helpers.alone import CHOSEN, squared, trace
from tests.helpers.peaks import peak_bytes
from tracer import TracingOptimizer
from tracer.errors import TaskError

BYTES = 40_000


class Lazy:
    """Makes its examples when they are asked for and counts those that are alive."""

    def __init__(self, count, *, random=False):
        self.count, self.random = count, random
        self.alive, self.most, self.loaded = weakref.WeakSet(), 0, 0

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.loaded += 1
        generator = torch.Generator().manual_seed(i + self.random * self.loaded)
        x = torch.randn(BYTES // 4, generator=generator)
        self.alive.add(x)
        self.most = max(self.most, len(self.alive))
        return x, torch.tensor(float(i % 2))


class Averaging(nn.Module):
    """A model that keeps little of a long example."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(50, 1)

    def forward(self, x):
        return torch.tanh(self.layer(x.view(len(x), -1, 50).mean(1))).squeeze(1)


def averaging():
    torch.manual_seed(0)
    return Averaging()


def lazy(path, count, **options):
    task = Task(averaging, squared, Lazy(count, **options), [Lazy(4)[i] for i in range(4)])
    trace(path, Task(averaging, squared, Lazy(count), task.test))
    return task


def test_examples_are_alive_while_they_are_used(tmp_path):
    task = lazy(tmp_path / "run.h5", 200)
    small, large = [
        Replay(tmp_path / "run.h5", task, memory=memory) for memory in (40 * BYTES, "1GiB")
    ]
    chosen = {"methods": ("tracincp",), "checkpoints": [1, 3, 5], "progress": False}
    found = small.influence([0, 1], **chosen)
    assert task.train.most < 20
    assert task.train.loaded >= 3 * 200
    gc.collect()
    assert len(task.train.alive) < 20
    task.train.loaded = 0
    expected = large.influence([0, 1], **chosen)
    assert task.train.loaded < 250  # all of them fit, those looked at beforehand came twice
    close = {"rtol": 1e-4, "atol": 1e-7}
    assert np.allclose(found.scores["tracincp"], expected.scores["tracincp"], **close)
    gc.collect()
    assert not task.train.alive


def test_examples_that_are_drawn_anew_are_an_error(tmp_path):
    task = lazy(tmp_path / "run.h5", 60, random=True)
    run = Replay(tmp_path / "run.h5", task, memory=40 * BYTES)
    with pytest.raises(TaskError, match=r"train set: example \d+ was loaded twice and gave other"):
        run.influence([0], methods=("tracincp",), **CHOSEN)


def test_a_dry_run_meets_what_lazy_data_take(tmp_path):
    """Examples are 12 MB, as much again collated and copied."""
    task, budget = lazy(tmp_path / "run.h5", 300), 4_000_000
    chosen = {"methods": ("tracincp",), "checkpoints": [3]}
    tried, took = (
        peak_bytes(lambda job=job: job(Replay(tmp_path / "run.h5", task, memory=budget)))
        for job in (
            lambda run: run.estimate([0, 1], **chosen),
            lambda run: run.influence([0, 1], progress=False, **chosen),
        )
    )
    assert took <= budget
    assert 0.8 * took <= tried <= 1.25 * took


def test_training_batches_may_be_views_of_the_data(tmp_path):
    """A loss that changes its batch in place leaves the data set alone, on either side."""
    data = [(torch.rand(1, 4, dtype=torch.float64) * 255, torch.tensor([k % 3])) for k in range(8)]

    def loss(model, batch):
        return F.cross_entropy(model(batch[0].div_(255)), batch[1], reduction="none")

    def model():
        torch.manual_seed(0)
        return nn.Linear(4, 3).double()

    task = Task(model, loss, data[:6], data[6:], collate=lambda examples: examples[0])
    trained, kept = model(), [x.clone() for x, _ in data]
    with TracingOptimizer(
        torch.optim.SGD(trained.parameters(), lr=0.1), trained, tmp_path / "r.h5"
    ) as o:
        for t in range(6):
            o.zero_grad()
            loss(trained, (data[t][0].clone(), data[t][1])).mean().backward()
            o.step(batch_ids=[t])
    run = Replay(tmp_path / "r.h5", task)
    run.verify(progress=False)
    run.influence([0], methods=("tracin",), progress=False)
    assert all(torch.equal(x, before) for (x, _), before in zip(data, kept, strict=True))
