"""Graphs that work for one backward pass: every gradient is still the example's own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from replay import Replay, Task
from replay.gradients.engine import Engine
from tests.helpers.functions import (
    Forgets,
    Frees,
    FusedCrossEntropy,
    own_gradients,
    written_out,
)
from tests.helpers.layers import Block
from tracer import TracingOptimizer
from tracer.errors import GradientError

SELECTED = partial(
    create_selective_checkpoint_contexts,
    lambda ctx, op, *args, **kwargs: CheckpointPolicy.MUST_SAVE,
)


def plain(s, x, y):
    return F.cross_entropy(s.b(torch.tanh(s.a(x))), y, reduction="none")


def fused(s, x, y):
    return FusedCrossEntropy.apply(s.b(torch.tanh(s.a(x))), y)


def frees(s, x, y):
    return F.cross_entropy(s.b(Frees.apply(s.a(x))), y, reduction="none")


def forgets(s, x, y):
    return F.cross_entropy(s.b(Forgets.apply(s.a(x))), y, reduction="none")


def selective(s, x, y):
    """The checkpoint keeps what one backward pass takes."""

    def body(x):
        return s.b(torch.tanh(s.a(x)))

    scores = checkpoint(body, x, use_reentrant=False, context_fn=SELECTED)
    return F.cross_entropy(scores, y, reduction="none")


def donated(s, x, y):
    """As compiled functions do whose buffers are donated."""
    h = torch.tanh(s.a(x))
    h.register_hook(refuse_retained)
    return F.cross_entropy(s.b(h), y, reduction="none")


def refuse_retained(grad):
    if torch._C._autograd._get_current_graph_task_keep_graph():
        raise RuntimeError("donated buffers need retain_graph=False")
    return grad


def coupled(run):
    return lambda s, x, y: run(s, x - 0.5 * s.a(x).mean(), y)


RUNS = [fused, frees, forgets, selective, donated]


def network():
    torch.manual_seed(0)
    return Block(None, a=nn.Linear(4, 5), b=nn.Linear(5, 3)).double()


@pytest.mark.parametrize(
    ("budget", "audit"), [(1 << 20, 100), (900, 1)], ids=["stored", "in-blocks-proven-each-time"]
)
@pytest.mark.parametrize("between", [lambda run: run, coupled], ids=["apart", "coupled"])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_each_example_gets_its_own_gradient(run, between, budget, audit):
    model, engine = network(), Engine(audit)
    parameters, weights = dict(model.named_parameters()), torch.rand(8).double()
    for _ in range(3):
        x, y = torch.randn(8, 4).double(), torch.randint(0, 3, (8,))
        forward = partial(between(run), model, x, y)
        found = engine.of_batch(parameters, forward, weights, budget=budget)
        expected = own_gradients(partial(between(plain), model, x, y), parameters, weights)
        assert (written_out(found, parameters) - expected).norm() <= 1e-13 * expected.norm()
        assert all("a forward pass for each" in path for path in engine.paths.values())
    if between is coupled:
        assert engine.paths["a.weight"].startswith("complete")
    elif run is fused:
        assert engine.paths["a.weight"].startswith("linear")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_so_do_independent_examples(run):
    model, engine = network(), Engine()
    parameters = dict(model.named_parameters())
    x, y = torch.randn(6, 4).double(), torch.randint(0, 3, (6,))
    for _ in range(2):
        found = engine.of_independent(
            parameters,
            lambda: run(model, x, y),
            lambda i: run(model, x[i : i + 1], y[i : i + 1]),
        )
        expected = own_gradients(partial(plain, model, x, y), parameters, torch.ones(6))
        assert (written_out(found, parameters) - expected).norm() <= 1e-13 * expected.norm()


def test_a_forward_pass_that_is_another_one_is_told():
    """Noise that no generator of torch's draws."""
    model, noise = network(), np.random.default_rng(0)
    parameters, x, y = (
        dict(model.named_parameters()),
        torch.randn(8, 4).double(),
        torch.arange(8) % 3,
    )

    def forward():
        return fused(model, x + float(noise.normal()), y)

    with pytest.raises(GradientError, match=r"step 3: .* gave other losses\. 1\. Draw with torch"):
        Engine().of_batch(parameters, forward, torch.ones(8), budget=1 << 20, where="step 3")


class Remembers(nn.Module):
    """Each forward moves a buffer that the next one reads, and normalises by the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.register_buffer("seen", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.seen *= 1.1
        return self.b(
            torch.dropout(torch.tanh(self.norm(self.a(x))) * self.seen, 0.2, self.training)
        )


def test_a_fused_loss_scores_as_the_plain_one(tmp_path):
    """Through buffers that a forward moves, dropout, two micro-batches a step."""
    torch.manual_seed(0)
    data = [(torch.randn(4).double(), torch.tensor(k % 3)) for k in range(16)]
    losses = [
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        lambda model, batch: FusedCrossEntropy.apply(model(batch[0]), batch[1]),
    ]
    tasks = [Task(lambda: Remembers().double(), loss, data, data[:5]) for loss in losses]
    model = tasks[0].model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        for t in range(3):
            optimizer.zero_grad()
            for part in (range(t, t + 5), range(t + 5, t + 9)):
                optimizer.observe(list(part))
                batch = tasks[0].collate([data[i] for i in part])
                (losses[0](model, batch).mean() / 2).backward()
            optimizer.step()
    for methods in (["tracin", "ideal"], ["tracincp"]):
        expected, found = (
            Replay(tmp_path / "run.h5", task).influence([0, 3], methods=methods, progress=False)
            for task in tasks
        )
        for name in methods:
            size = np.abs(expected.scores[name]).max()
            assert np.abs(found.scores[name] - expected.scores[name]).max() <= 1e-12 * size
    plan = {row.name: row.train for row in Replay(tmp_path / "run.h5", tasks[1]).plan()}
    assert plan["b.weight"].startswith("linear, with a forward pass for each backward pass")
