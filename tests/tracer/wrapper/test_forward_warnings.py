"""Forwards that a replay will not repeat are said at the first step, with what to do instead."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch._inductor.config
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tracer import TracingOptimizer
from tracer.errors import TracingWarning

X = torch.randint(0, 6, (12, 3), generator=torch.Generator().manual_seed(0))
DATA = [(x, int(x[0] > 2)) for x in X]


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Bag(nn.Module):
    """An embedding whose rows have at most norm 1: written into by its forward, or scaled."""

    def __init__(self, *, writes):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4, max_norm=1.0 if writes else None)
        self.top = nn.Linear(4, 2)

    def forward(self, x):
        if self.table.max_norm is not None:
            return self.top(self.table(x).mean(1))
        norm = self.table.weight.norm(dim=1, keepdim=True)
        return self.top(F.embedding(x, self.table.weight * (1.0 / norm).clamp(max=1)).mean(1))


def said(path, build, given=lambda model: model):
    """Train three steps; return what was warned of, and the task."""
    task = Task(build, loss, DATA, DATA[:2])
    model = build()
    wrapped = given(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracingWarning)
        with TracingOptimizer(sgd, wrapped, path) as optimizer:
            for t in range(3):
                optimizer.zero_grad()
                rows = DATA[4 * t : 4 * t + 4]
                loss(wrapped, task.collate(rows)).mean().backward()
                optimizer.step(batch_ids=range(4 * t, 4 * t + 4))
    return [str(one.message) for one in caught if one.category is TracingWarning], task


def test_a_forward_that_writes_into_parameters(path, tmp_path):
    (text,), task = said(path, lambda: Bag(writes=True))
    assert text.startswith(
        "a forward of the model writes into its parameter 'table.weight', as nn."
    )
    assert "1. scale in the forward" in text
    assert "2. replay with allow_mismatch=True" in text
    Replay(path, task).influence([0], methods=["tracin"], allow_mismatch=True, progress=False)
    none, task = said(tmp_path / "scaled.h5", lambda: Bag(writes=False))
    assert none == []
    assert Replay(tmp_path / "scaled.h5", task).verify(progress=False).steps == range(3)


def dropping(p=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Dropout(p), nn.Linear(12, 2))


def compiled(model, *, config, part=False):
    """Compile by a backend without a compiler that says of itself what inductor would."""
    torch._dynamo.reset()
    place = model[2] if part else model
    place.compile(backend="eager")
    place._compiled_call_impl.get_compiler_config = lambda: config
    return model


INDUCTOR, EXACT = {"fallback_random": False}, {"fallback_random": True}


@pytest.mark.parametrize("part", [False, True])
def test_random_numbers_that_a_compiler_draws(path, part):
    (text,), _ = said(path, dropping, lambda model: compiled(model, config=INDUCTOR, part=part))
    assert text.startswith("the compiled model draws random numbers of its own, as dropout does")
    assert "1. set torch._inductor.config.fallback_random = True" in text
    assert '2. compile with torch.compile(model, options={"fallback_random": True})' in text


@pytest.mark.parametrize(
    ("p", "config", "everywhere"),
    [(0.5, None, False), (0.5, EXACT, False), (0.5, INDUCTOR, True), (0.0, INDUCTOR, False)],
    ids=["another backend", "option", "setting", "nothing random"],
)
def test_compiled_models_that_draw_as_others_do(path, p, config, everywhere):
    with torch._inductor.config.patch(fallback_random=everywhere):
        texts, _ = said(path, lambda: dropping(p), lambda model: compiled(model, config=config))
    assert texts == []
