"""Models whose forward reads and moves buffers, however it does so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from replay import Replay, Task
from tracer import TracingOptimizer, open_log

DATA = [(x, k % 3) for k, x in enumerate(torch.randn(24, 4, generator=torch.manual_seed(0)))]
METHODS = ("tracin", "tracincp")
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


class Centred(nn.Module):
    """Subtracts a mean that it carries on: in place, or in a new tensor that keeps its graph."""

    def __init__(self, *, how):
        super().__init__()
        torch.manual_seed(1)
        self.how, self.first, self.last = how, nn.Linear(4, 6), nn.Linear(6, 3)
        mean = torch.zeros(1, 1).expand(1, 6) if how == "expanded" else torch.zeros(1, 6)
        self.register_buffer("mean", mean)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        out = self.last(h - self.mean.detach())
        if self.training:
            now = h if self.how == "attached" else h.detach()
            now = now.mean(0, keepdim=True)
            if self.how == "in place":
                with torch.no_grad():
                    self.mean.mul_(0.9).add_(now, alpha=0.1)
            else:
                self.mean = 0.9 * self.mean.detach() + 0.1 * now
        return out


def loss(model, batch):
    return F.cross_entropy(model(batch[0].to(next(model.parameters()))), batch[1], reduction="none")


def trained(path, model, rule, skip=None, steps=4):
    """Train on batches of four; ``skip`` throws one away before each second step."""
    torch.manual_seed(0)
    built = model()
    task = Task(model, loss, DATA[:16], DATA[:4])
    with TracingOptimizer(RULES[rule](built.parameters()), built, path) as optimizer:
        for t in range(steps):
            ids = [(4 * t + k) % 16 for k in range(4)]
            optimizer.zero_grad()
            if skip is not None and t % 2:
                skip(optimizer, built, loss(built, task.collate(DATA[:4])).mean())
            found = loss(built, task.collate([DATA[i] for i in ids])).mean()
            found.backward()
            if skip is observed:
                optimizer.observe(ids)
                optimizer.step()
            else:
                optimizer.step(batch_ids=ids)
    return task


@pytest.mark.parametrize(
    ("how", "rule"), [("anew", "momentum"), ("attached", "adamw"), ("expanded", "sgd")]
)
def test_a_buffer_that_is_assigned_anew(tmp_path, how, rule):
    """It is what a buffer is that moves in place, also when the replay is asked again."""
    expected, found = (
        Replay(tmp_path / kind, trained(tmp_path / kind, lambda kind=kind: Centred(how=kind), rule))
        for kind in ("in place", how)
    )
    for _ in range(2):
        ours = found.influence([3], methods=METHODS, progress=False)
        theirs = expected.influence([3], methods=METHODS, progress=False)
        for name in METHODS:
            np.testing.assert_allclose(ours.scores[name], theirs.scores[name], rtol=1e-4, atol=1e-7)
        own, wanted = (run.self_influence(progress=False) for run in (found, expected))
        for name in own.scores:
            np.testing.assert_allclose(own.scores[name], wanted.scores[name], rtol=1e-4, atol=1e-7)
        assert found.verify(progress=False).steps == range(4)


def test_an_expanded_buffer_is_resumed(tmp_path):
    trained(tmp_path / "run.h5", lambda: Centred(how="expanded"), "sgd", steps=2)
    model = Centred(how="expanded")
    sgd = RULES["sgd"](model.parameters())
    with TracingOptimizer(sgd, model, tmp_path / "run.h5", resume=True):
        mean = model.mean.clone()
    with open_log(tmp_path / "run.h5") as log:
        assert torch.equal(mean, log.buffers(2)["mean"])
        assert len(mean.unique()) == 6


def thrown_away(optimizer, model, found):
    """The loss was not worth a backward pass."""


def zeroed(optimizer, model, found):
    found.backward()
    optimizer.zero_grad()


def zeroed_by_the_model(optimizer, model, found):
    found.backward()
    model.zero_grad()


def observed(optimizer, model, found):
    optimizer.observe([0, 1, 2, 3])
    optimizer.zero_grad()


def spectral():
    torch.manual_seed(1)
    return nn.Sequential(spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("skip", [thrown_away, zeroed, zeroed_by_the_model, observed])
def test_a_batch_that_is_skipped_after_its_forward(tmp_path, skip):
    """The step begins with the buffers of the forward whose gradient it took."""
    task = trained(tmp_path / "run.h5", spectral, "sgd", skip)
    assert Replay(tmp_path / "run.h5", task).verify(progress=False).steps == range(4)


def test_a_state_before_a_skipped_batch_is_from_before_its_forward(tmp_path):
    """So that a resumed run, which meets that batch again, moves the buffers as it did."""
    model = spectral()
    path, kept = tmp_path / "run.h5", []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(sgd, model, path, state_every=2) as optimizer:
        for t in range(4):
            kept.append({name: b.clone() for name, b in model.named_buffers()})
            for ids in ([5, 6], [t, t + 1]):
                optimizer.zero_grad()
                loss(
                    model, (torch.stack([DATA[i][0] for i in ids]), torch.tensor(ids) % 3)
                ).mean().backward()
            optimizer.step(batch_ids=ids)
    with open_log(path) as log:
        for name, before in kept[2].items():
            assert torch.equal(log.state(2)["buffers"][name], before)
            assert not torch.equal(log.buffers(2)[name], before)
