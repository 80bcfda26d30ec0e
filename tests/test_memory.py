"""What a replay holds stays within its budget of memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile

from replay import Replay, Task
from replay.gradients import products, workspace
from replay.gradients.convolution import Convolved, Geometry
from replay.gradients.outer import Outer
from replay.gradients.workspace import temporaries
from tracer import TracingOptimizer

BATCH = 4
MODELS = {  # and the shape of an example, how many, momentum
    "wide": (
        lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 500)),
        (64,),
        *(5000, 0.0),
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
    with TracingOptimizer(sgd, model, path) as optimizer:
        for t in range(2):
            ids = list(range(BATCH * t, BATCH * t + BATCH))
            optimizer.zero_grad()
            loss(model, task.collate([data[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    return path, task


def peak_bytes(job):
    """Return the most that tensors allocated during a job take at once."""
    with profile(profile_memory=True) as found:
        job()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("method", ["tracin", "ideal", "tracincp"])
def test_replays_keep_to_their_budget(traced, method):
    path, task = traced

    def took(memory):
        run = Replay(path, task=task, memory=memory)
        chosen = {"methods": (method,), "checkpoints": [1], "progress": False}
        return peak_bytes(
            lambda: run.influence(range(len(task.test)), ideal_tolerance=None, **chosen)
        )

    free = took("2GiB")
    for budget in (free // 2, free // 6):
        assert took(budget) <= budget


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Outer(torch.randn(n, 16, 256), torch.randn(n, 16, 256), 0, 256),
        lambda n: Convolved(
            torch.randn(n, 1, 16, 20, 20),
            torch.randn(n, 1, 32, 18, 18),
            Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1),
        ),
    ],
    ids=["sequences", "convolution"],
)
def test_products_keep_to_their_budget(make):
    left, right = make(50), make(60)

    def took(budget):
        workspace._kept.__dict__.clear()  # what other tests left
        with temporaries(budget):
            return peak_bytes(lambda: products.inner_pieces([left], [right]))

    assert took(4 << 20) <= 4 << 20
    assert took(2 << 30) > 4 << 20
