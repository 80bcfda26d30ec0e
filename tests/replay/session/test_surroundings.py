"""What a program has set around a replay changes nothing, and is left as found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tracer import TracingOptimizer

METHODS = ("tracin", "ideal", "tracincp")
DATA = [(x, k % 3) for k, x in enumerate(torch.randn(12, 4, generator=torch.manual_seed(0)))]


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def plain(model, batch):
    x = batch[0].to(next(model.parameters()))
    return F.cross_entropy(model(x), batch[1], reduction="none")


def halved(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return plain(model, batch).float()


def trace(path, loss, build=linear, data=DATA):
    """Train a few steps; return the task."""
    task, model = Task(build, loss, data, data[:4]), build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(sgd, model, path) as optimizer:
        for t in range(4):
            ids = [3 * t, 3 * t + 1, 3 * t + 2]
            optimizer.zero_grad()
            loss(model, task.collate([data[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    return task


def scores(path, task):
    run = Replay(path, task)
    return run.influence([0, 1], methods=METHODS, checkpoints=[0, 2], progress=False).scores


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    path = tmp_path_factory.mktemp("known") / "run.h5"
    task = trace(path, plain)
    return path, task, scores(path, task)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("kind", AROUND)
def test_surroundings_change_nothing(known, kind):
    path, task, expected = known
    with AROUND[kind]():
        asked = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = scores(path, task)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == asked
        assert torch.is_autocast_enabled("cpu") == (kind == "autocast")
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if kind == "autocast" else torch.float32)
    assert not torch.is_autocast_enabled("cpu")
    for again in (found, scores(path, task)):  # nothing is left of it either
        assert all(np.array_equal(again[name], expected[name]) for name in METHODS)


def test_autocast_of_the_task_is_part_of_it(tmp_path):
    """Also inside another one, which keeps casts of weights until it ends."""
    task = trace(tmp_path / "run.h5", halved)
    expected = scores(tmp_path / "run.h5", task)
    with torch.autocast("cpu", torch.bfloat16):
        linear()(torch.ones(1, 4))
        found = scores(tmp_path / "run.h5", task)
    assert all(np.array_equal(found[name], expected[name]) for name in METHODS)


class Encoder(nn.Module):
    """Leaves padding out of attention, and not of the mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True)
        self.table, self.encoder = nn.Embedding(5, 4), nn.TransformerEncoder(layer, 1)
        self.top = nn.Linear(4, 3)

    def forward(self, tokens):
        h = self.encoder(self.table(tokens), src_key_padding_mask=tokens == 0)
        return self.top(h.mean(1))


def of_tokens(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_values_are_those_whose_gradients_are_taken(tmp_path):
    """A transformer takes another way, with zeros for padding, where there is no graph."""
    tokens = torch.randint(1, 5, (12, 4), generator=torch.manual_seed(1))
    tokens[::2, 2:] = 0
    data = [(row, k % 3) for k, row in enumerate(tokens)]
    run = Replay(tmp_path / "run.h5", trace(tmp_path / "run.h5", of_tokens, Encoder, data))
    found = run.influence([0, 2], methods=["ideal"], progress=False).completeness["ideal"]
    assert (abs(found["residual"]) <= 1e-4 * abs(found["measured"])).all()
    assert torch.backends.mha.get_fastpath_enabled()


def precisions():
    backends = torch.backends
    kinds = backends, backends.cudnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
    return [kind.fp32_precision for kind in kinds]


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older torch"
)
@pytest.mark.parametrize("place", ["", "cudnn", "cuda.matmul", "cudnn.conv"])
@pytest.mark.parametrize("allowed", [False, True])
def test_newer_settings_of_tf32(known, place, allowed):
    path, task, _ = known
    one = torch.backends
    for name in filter(None, place.split(".")):
        one = getattr(one, name)
    before, seen = one.fp32_precision, []

    def spy(model, batch):
        seen.append(precisions()[2:])
        return plain(model, batch)

    watched = Task(task.model, spy, task.train, task.test)
    try:
        one.fp32_precision = "tf32"
        found = precisions()
        Replay(path, watched, allow_tf32=allowed).drops([0], progress=False)
        assert precisions() == found
        one.fp32_precision = "ieee"  # what inherited it still does
        inherited = precisions()
    finally:
        one.fp32_precision = before
    assert seen
    assert all(now == ["tf32" if allowed else "ieee"] * 3 for now in seen)
    assert inherited[2] == ("none" if place == "cudnn.conv" else "ieee")


def test_a_medium_precision_is_left_as_found(known):
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    try:
        torch.set_float32_matmul_precision("medium")
        Replay(*known[:2]).drops([0], progress=False)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        if matmul is not None:
            matmul.fp32_precision = before
            torch.backends.cuda.matmul.fp32_precision = "none"
