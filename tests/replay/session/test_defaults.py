"""A default device or dtype that a program has set changes neither tracing nor replay."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from replay.session import bound_run
from tracer import TracingOptimizer

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3
METHODS = ("tracin", "ideal", "tracincp")
RULES = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}
DEFAULTS = {
    "device": (torch.set_default_device, "meta", None),
    "float64": (torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": (torch.set_default_dtype, torch.bfloat16, torch.float32),
}


def build():
    made = {"device": "cpu", "dtype": torch.float32}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False, **made), nn.BatchNorm1d(5, **made))
    return model.extend([nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 3, **made)])


def loss(model, batch):
    return F.cross_entropy(model(batch[0].to(model[0].weight)), batch[1], reduction="none")


def collate(rows):
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


TASK = Task(build, loss, list(zip(X, Y, strict=True)), [(X[0], Y[0])], collate=collate)


def trained(path, rule):
    """Train four steps, the last two resumed; return what training leaves."""
    for last in (2, 4):
        model = build()
        torch.manual_seed(1)
        inner, kept = RULES[rule](model.parameters()), {"resume": last == 4, "record": "batches"}
        with TracingOptimizer(inner, model, path, **kept) as optimizer:
            for t in range(optimizer.position[0], last):
                rows = slice(4 * t, 4 * t + 4)
                optimizer.zero_grad()
                loss(model, (X[rows], Y[rows])).mean().backward()
                optimizer.clip_grad_norm_(0.5)
                optimizer.observe(range(16)[rows], weights=[0.25] * 4, batch=(X[rows], Y[rows]))
                optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def asked(path):
    """Return what a replay finds, bit for bit."""
    run = Replay(path, TASK)
    assert run.verify(progress=False).steps == range(4)
    found = run.influence([0], methods=METHODS, progress=False).scores
    found["self"] = run.self_influence(progress=False).scores["self"]
    return {name: table.tobytes() for name, table in found.items()}


@pytest.fixture(scope="module", params=RULES)
def known(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("known") / "run.h5"
    return path, request.param, trained(path, request.param), asked(path)


@pytest.mark.parametrize("what", DEFAULTS)
def test_defaults_change_nothing(known, tmp_path, what):
    _, rule, after, scores = known
    choose, value, usual = DEFAULTS[what]
    try:
        choose(value)
        again, found = trained(tmp_path / "run.h5", rule), asked(tmp_path / "run.h5")
    finally:
        choose(usual)
    assert all(map(torch.equal, again, after))
    assert found == scores


def test_every_tensor_of_a_replay_is_made_on_a_device_that_is_named(known, monkeypatch):
    """A task may want a GPU as its default device: what is ours does not move there."""
    path, _, _, scores = known
    usual = bound_run.usual_surroundings

    @contextmanager
    def elsewhere(*given, **named):
        with usual(*given, **named), torch.device("meta"):
            yield

    monkeypatch.setattr(bound_run, "usual_surroundings", elsewhere)
    assert asked(path) == scores
    assert np.isfinite(Replay(path, TASK).drops([0], progress=False)).all()
