"""What a replay holds stays within its budget of memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tests.helpers.peaks import peak_bytes
from tracer import TracingOptimizer

BATCH = 4
MODELS = {  # and the shape of an example, how many, momentum
    "wide": (
        lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 500)),
        (64,),
        *(2000, 0.0),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 500)),
        ),
        (3, 14, 14),
        *(300, 0.0),
    ),
    "sequences": (
        lambda: nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 500)),
        (12, 32),
        *(300, 0.9),
    ),
    "16-states": (
        lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 500)),
        (6,),
        *(1200, 0.0),
    ),
}


def loss(model, batch):
    logits = model(batch[0]).reshape(-1, 500)
    target = batch[1].repeat_interleave(len(logits) // len(batch[1]))
    return F.cross_entropy(logits, target, reduction="none").view(len(batch[1]), -1).mean(1)


@pytest.fixture(scope="module", params=MODELS)
def traced(request, tmp_path_factory):
    build, shape, count, momentum = MODELS[request.param]
    path = tmp_path_factory.mktemp(request.param) / "run.h5"
    torch.manual_seed(0)
    data = [(torch.randn(shape), torch.tensor(k % 500)) for k in range(count)]
    task, model = Task(build, loss, data, data), build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    with TracingOptimizer(sgd, model, path, snapshot_every=1) as optimizer:
        for t in range(2):
            ids = list(range(BATCH * t, BATCH * t + BATCH))
            optimizer.zero_grad()
            loss(model, task.collate([data[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    return path, task, 100 if request.param == "16-states" else 10  # below 16: states one by one


@pytest.mark.parametrize("method", ["ideal", "tracincp"])  # tracin does what ideal does, and less
def test_replays_keep_to_their_budget(traced, method):
    path, task, audit = traced

    def took(memory):
        run = Replay(path, task=task, memory=memory, audit=audit)
        chosen = {"methods": (method,), "checkpoints": [1], "progress": False}
        return peak_bytes(
            lambda: run.influence(range(len(task.test)), ideal_tolerance=None, **chosen)
        )

    free = took("2GiB")
    for budget in (free // 2, free // 6):
        assert took(budget) <= budget


def test_self_influence_of_long_texts_keeps_to_its_budget(tmp_path):
    """Pairs of 2,048 tokens would take 16 MB an example."""
    torch.manual_seed(0)
    data = [(torch.randint(0, 50, (2048,)), torch.randn(8)) for _ in range(16)]

    def build():
        torch.manual_seed(1)
        return nn.Embedding(50, 8)

    def distance(model, batch):
        return (torch.tanh(model(batch[0])).mean(1) - batch[1]).square().sum(1)

    task, model, path = Task(build, distance, data, data[:2]), build(), tmp_path / "run.h5"
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(sgd, model, path, snapshot_every=1) as optimizer:
        distance(model, task.collate(data)).mean().backward()
        optimizer.step(batch_ids=range(16))
    run = Replay(path, task=task, memory="32MB")
    found = []
    assert peak_bytes(lambda: found.append(run.self_influence(progress=False))) <= 32 << 20
    whole = Replay(path, task=task).self_influence(progress=False)
    assert found[0].scores["self"] == pytest.approx(whole.scores["self"], rel=1e-6)


def test_unrolling_keeps_to_its_budget(tmp_path):
    """Cotangents of parameters and of two moments, for every test example."""
    build, shape, _, _ = MODELS["wide"]
    path, data = tmp_path / "run.h5", [(torch.randn(shape), torch.tensor(k)) for k in range(24)]
    task, model = Task(build, loss, data, data), build()
    with TracingOptimizer(torch.optim.AdamW(model.parameters()), model, path) as optimizer:
        for t in range(2):
            optimizer.zero_grad()
            loss(model, task.collate(data[4 * t : 4 * t + 4])).mean().backward()
            optimizer.step(batch_ids=range(4 * t, 4 * t + 4))

    def took(memory):
        run = Replay(path, task=task, memory=memory, audit=10)  # no 16 states in one pass
        how = {"methods": ("unrolled",), "progress": False}
        return peak_bytes(lambda: run.influence(range(len(data)), **how))

    free = took("2GiB")
    for budget in (free // 2, free // 3):
        assert took(budget) <= budget
