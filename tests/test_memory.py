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
from replay.gradients.examples import PerExample
from replay.gradients.lookup import Lookup
from replay.gradients.outer import Outer
from replay.gradients.pieces import Rows
from replay.gradients.workspace import temporaries
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


def outer(n, rows, d, p):
    return Outer(torch.randn(n, rows, d), torch.randn(n, rows, p), 0, p)


def convolved(n):
    geometry = Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1)
    return Convolved(torch.randn(n, 1, 16, 20, 20), torch.randn(n, 1, 32, 18, 18), geometry)


def looked_up(n):
    return Lookup(torch.randint(-1, 900, (n, 700)), torch.randn(n, 700, 64), 900)


def took(budget, job):
    """Return the most that a job's tensors take under a budget, and its result."""
    workspace._kept.__dict__.clear()  # what other tests left
    found = []
    with temporaries(budget):
        peak = peak_bytes(lambda: found.append(job()))
    return peak, found[0]


SMALL = 4 << 20


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda: outer(50, 16, 256, 256), lambda: outer(60, 16, 256, 256)),
        (lambda: outer(200, 64, 512, 512), lambda: outer(2, 64, 512, 512)),
        (lambda: outer(2, 64, 512, 512), lambda: outer(200, 64, 512, 512)),
        (lambda: outer(1, 600, 1024, 1024), lambda: outer(1, 600, 1024, 1024)),
        (lambda: convolved(50), lambda: convolved(60)),
    ],
    ids=["sequences", "many-left", "many-right", "long-sequences", "convolution"],
)
def test_products_keep_to_their_budget(left, right):
    torch.manual_seed(0)
    left, right = left(), right()
    small, found = took(SMALL, lambda: products.inner_pieces([left], [right]))
    large, expected = took(2 << 30, lambda: products.inner_pieces([left], [right]))
    assert small <= SMALL < large
    assert (found - expected).norm() <= 1e-5 * expected.norm()


PIECES = {
    "gram": lambda: outer(64, 128, 256, 256),
    "gram-of-one": lambda: outer(2, 700, 1024, 1024),
    "formed": lambda: outer(20, 512, 256, 256),
    "formed-of-one": lambda: outer(1, 1100, 1024, 1024),
    "embedding": lambda: looked_up(30),
    "convolution": lambda: convolved(100),
    "rows": lambda: Rows(torch.randn(40, 20_000), (20_000, 1)),
    "row": lambda: Rows(torch.randn(1, 800_000), (800_000, 1)),
}


@pytest.mark.parametrize("make", PIECES.values(), ids=PIECES.keys())
def test_squared_norms_keep_to_their_budget(make):
    torch.manual_seed(0)
    piece = make()
    small, found = took(SMALL, piece.squared_norms)
    large, whole = took(2 << 30, piece.squared_norms)
    assert small <= SMALL < large
    expected = piece.dense(slice(0, piece.shape[0])).double().square().sum(1)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(whole, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["gram", "embedding", "convolution"])
def test_projections_keep_to_their_budget(name):
    torch.manual_seed(0)
    piece = PIECES[name]()
    direction = torch.randn(piece.shape)
    examples = PerExample(torch.zeros(piece.count), {"w": [piece]}, {})
    job = lambda: products.project(examples, [{"w": direction}])[0]  # noqa: E731
    (small, found), (large, whole) = took(SMALL, job), took(2 << 30, job)
    assert small <= SMALL < large
    expected = piece.dense(slice(0, piece.shape[0])).double() @ direction.flatten().double()
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (whole - expected).norm() <= 1e-5 * expected.norm()


def test_sums_of_convolutions_keep_to_their_budget():
    torch.manual_seed(0)
    shape = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    piece = Convolved(torch.randn(60, 1, 64, 8, 8), torch.randn(60, 1, 64, 8, 8), shape)
    small, found = took(SMALL, piece.summed)
    assert small <= SMALL  # each block's sum is as large as the weight, 147 kB
    expected = piece.dense(slice(0, 64)).double().sum(0).view(piece.shape)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


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
    with TracingOptimizer(sgd, model, path) as optimizer:
        distance(model, task.collate(data)).mean().backward()
        optimizer.step(batch_ids=range(16))
    run = Replay(path, task=task, memory="32MB")
    found = []
    assert peak_bytes(lambda: found.append(run.self_influence(progress=False))) <= 32 << 20
    whole = Replay(path, task=task).self_influence(progress=False)
    assert found[0].scores["self"] == pytest.approx(whole.scores["self"], rel=1e-6)
