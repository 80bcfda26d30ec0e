"""The loop of PyTorch's DCGAN tutorial, which calls parts of a model; and how it goes wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from replay import Replay, Task
from tests.helpers.rules import O
from tracer import TracingOptimizer
from tracer.errors import MismatchError, TracingError, TracingWarning

POINTS = list(torch.randn(14, 2, generator=torch.Generator().manual_seed(5)).double())
NOISE = list(torch.randn(14, 3, generator=torch.Generator().manual_seed(6)).double())


class Pair(nn.Module):
    """Holds both; nobody calls it."""

    def __init__(self):
        super().__init__()
        self.netG = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.netD = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))


def pair():
    torch.manual_seed(0)
    return Pair().double()


def discriminating(model, batch):
    """Return ``errD_real + errD_fake``."""
    real, noise = batch
    return softplus(-model.netD(real)[:, 0]) + softplus(model.netD(model.netG(noise))[:, 0])


def generating(model, batch):
    """Return ``errG``."""
    return softplus(-model.netD(model.netG(batch[1]))[:, 0])


DATA = list(zip(POINTS, NOISE, strict=True))  # beside a run, examples have a noise of their own
LOSSES = {"D": discriminating, "G": generating}
TASK = Task(pair, LOSSES, DATA[:12], DATA[12:], measure=discriminating)


def train(path, *, steps=3, batches=True):
    """Train as the tutorial does, with or without a trace."""
    model, criterion = pair(), nn.BCEWithLogitsLoss()
    net_d, net_g = model.netD, model.netG
    inner = {k: O.Adam(net.parameters(), lr=0.02) for k, net in (("D", net_d), ("G", net_g))}
    how = {"record": "batches"} if batches else {}
    wrapper = None if path is None else TracingOptimizer(inner, model, path, **how)
    optimizers = inner if wrapper is None else wrapper
    torch.manual_seed(7)
    for t in range(steps):
        ids = [(3 * t + k) % 12 for k in range(4)]
        real, label = torch.stack([POINTS[i] for i in ids]), torch.ones(4, dtype=torch.float64)
        net_d.zero_grad()
        criterion(net_d(real).view(-1), label).backward()
        noise = torch.randn(4, 3, dtype=torch.float64)
        fake = net_g(noise)
        label.fill_(0)
        criterion(net_d(fake.detach()).view(-1), label).backward()
        known = {"batch_ids": ids, **({"batch": (real, noise)} if batches else {})}
        known = {} if wrapper is None else known
        optimizers["D"].step(**known)
        net_g.zero_grad()
        label.fill_(1)
        criterion(net_d(fake).view(-1), label).backward()
        optimizers["G"].step(**known)
    if wrapper is not None:
        wrapper.close()
    return model.state_dict()


def test_the_loop_of_the_tutorial(tmp_path):
    left, right = train(tmp_path / "run.h5"), train(None)
    assert all(torch.equal(left[name], right[name]) for name in left)
    run = Replay(tmp_path / "run.h5", TASK)
    assert str(run.verify(progress=False)).startswith("steps 0:6 reproduce")
    found = run.influence([0, 1], progress=False)
    assert all((np.abs(scores).max(1) > 1e-3).all() for scores in found.scores.values())
    terms = found.terms["ideal"]
    assert np.abs(terms["rounding"]).max() < 1e-14
    whole = sum(terms[k] for k in ("data", "regulariser", "history", "rounding", "residual"))
    assert np.abs(whole - terms["measured"]).max() < 1e-14


def test_noise_that_nobody_logged(tmp_path):
    """Said while it trains, and where it does not reproduce."""
    with pytest.warns(TracingWarning, match=r"(?s)step 2, which optimizer 'D'.*1\. Pass record="):
        train(tmp_path / "run.h5", batches=False)

    def drawing(loss):
        return lambda model, x: loss(model, (x[0], torch.randn(len(x[0]), 3).double()))

    task = dataclasses.replace(TASK, loss={key: drawing(loss) for key, loss in LOSSES.items()})
    with pytest.raises(MismatchError, match=r"(?s)has no random state.*1\. Trace with record="):
        Replay(tmp_path / "run.h5", task).verify(progress=False)


def test_one_loss_for_both(tmp_path):
    train(tmp_path / "run.h5", steps=1)
    task = dataclasses.replace(TASK, loss=discriminating)
    message = r"(?s)took turns, and the task has one loss.*1\. Give it the loss of each: .*\"G\""
    with pytest.raises(MismatchError, match=message):
        Replay(tmp_path / "run.h5", task).verify(progress=False)


@pytest.mark.filterwarnings("ignore:.*without a step:tracer.errors.TracingWarning")
def test_a_wrapper_for_each_is_refused_at_once(tmp_path):
    """One of two would miss how the other moves the model; in turn they are fine."""
    model, paths = pair(), [tmp_path / name for name in ("D.h5", "G.h5")]
    inner = [O.Adam(net.parameters(), lr=0.02) for net in (model.netD, model.netG)]
    with TracingOptimizer(inner[0], model, paths[0]):
        for theirs, name in ((model, "netG.0.weight"), (model.netG, "0.weight")):
            message = rf"(?s)'{name}' is in two .* Adam whose steps go to .*D.h5.*  1\. Give one wr"
            with pytest.raises(TracingError, match=message):
                TracingOptimizer(inner[1], theirs, paths[1])
        assert not paths[1].exists()
        apart = pair()
        TracingOptimizer(O.Adam(apart.parameters()), apart, paths[1]).close()
        model.netG.requires_grad_(False)  # nothing moves what both have
        TracingOptimizer(inner[1], model.netG, paths[1], overwrite=True).close()
    model.netG.requires_grad_(True)
    TracingOptimizer(inner, model, paths[1], overwrite=True).close()
    TracingOptimizer(inner[0], model, paths[0], overwrite=True).close()
