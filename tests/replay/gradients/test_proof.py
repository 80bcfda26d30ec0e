"""Proofs and audits find coupled losses and wrong readers, and not mere rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from replay.gradients.engine import Engine
from replay.gradients.forms import products
from replay.gradients.forms.dense import matrices
from replay.gradients.proof import plan
from replay.gradients.readers import table
from tests.helpers.layers import (
    LAYERS,
    Block,
    check,
    complete,
    equal,
    losses_of,
    rows_of,
    sequences,
    vectors,
)
from tracer.errors import GradientError


def pairwise(model, x):
    z = model(x)
    return -torch.log_softmax(z @ z.T, 1).diagonal()


def test_pairwise_losses_are_found_coupled():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    parameters, x = dict(model.named_parameters()), vectors(5)
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    engine = Engine()
    found = engine.of_batch(parameters, lambda: pairwise(model, x), weights, budget=1 << 20)
    assert engine.paths["weight"] == "complete: rows of its linear operation are not examples"
    expected = rows_of(pairwise(model, x) * weights, parameters)
    gram = products.inner(found, found, {"weight": 1.0, "bias": 1.0})
    assert equal(gram, expected @ expected.T)


class Sometimes(nn.Module):
    """Couples examples by a factor that is zero at first; the graph is always the same."""

    def __init__(self):
        super().__init__()
        self.a, self.much = nn.Linear(4, 3), 0.0

    def forward(self, x):
        z = torch.tanh(self.a(x))
        return z + self.much * z.mean(0)


@pytest.mark.parametrize("wrong", [False, True], ids=["right-rules", "a-wrong-rule"])
def test_audits_find_coupling_that_begins_later(monkeypatch, wrong):
    """If what is said of an operation is wrong; else every pass is proven."""
    if wrong:
        monkeypatch.setattr("replay.gradients.plans.is_steady", lambda found, plan: True)
    torch.manual_seed(0)
    model = Sometimes().double()
    parameters, x = dict(model.named_parameters()), vectors(5)
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    engine = Engine(audit=4)

    def run():
        return engine.of_batch(
            parameters, lambda: losses_of(model, x), weights, budget=1 << 20, where="step 7"
        )

    run()
    model.much = 0.5
    if not wrong:
        expected = rows_of(losses_of(model, x) * weights, parameters)
        gram = products.inner(run(), run(), {"a.weight": 1.0, "a.bias": 1.0})
        assert equal(gram, expected @ expected.T)
        return
    for _ in range(3):
        run()
    with pytest.raises(GradientError, match=r"step 7: .* 'a.\w+' were proven .*--audit 1"):
        run()


def test_vanishing_gradients_prove_nothing():
    """A layer whose output gradient is zero once may hold its examples in any dimension."""
    torch.manual_seed(0)
    model = Block(lambda s, x: s.on * s.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(4, 3))
    model.on = 0.0
    model = model.double()
    engines = Engine(), Engine()
    check(model, sequences(7), sequences(7), engines)
    model.on = 1.0
    check(model, sequences(7), sequences(7), engines)


@pytest.mark.parametrize("name", ["time-first", "batch-norm", "positions"])
def test_one_example_proves_nothing_for_several(name):
    torch.manual_seed(0)
    build, data, uncovered = LAYERS[name]
    model = build().double()
    engines = Engine(), Engine()
    for n in (1, 5, 1):
        check(model, data(n), data(n), engines)
        assert complete(engines[0]) == (0 if n == 1 else uncovered)


def test_lengths_may_change_between_passes():
    """Examples in the middle of three dimensions, of which the outer and inner one change."""
    torch.manual_seed(0)
    model = Block(lambda s, x: s.a(x.permute(1, 0, 2, 3)).transpose(0, 1), a=nn.Linear(2, 3))
    model = model.double()
    engines = Engine(), Engine()
    for outer, inner in ((2, 3), (3, 2), (6, 1), (1, 6), (4, 5), (2, 3)):
        x, y = (torch.randn(n, outer, inner, 2, dtype=torch.float64) for n in (4, 3))
        check(model, x, y, engines)
        assert not complete(engines[0])


def swapped(form):
    return form.select(torch.arange(form.count - 1, -1, -1))


def larger(form):
    return matrices(1.03 * form.dense(slice(0, 3)), form.shape)


def off_by_a_hundredth(form):
    """Of one example."""
    rows = form.dense(slice(0, 3)).clone()
    rows[-1] *= 1.01
    return matrices(rows, form.shape)


@pytest.mark.parametrize(
    ("kind", "wrong", "why"),
    [
        *((kind, swapped, "not its own gradient") for kind in ("float64", "float32", "autocast")),
        *((kind, larger, "do not add up") for kind in ("float64", "float32", "autocast")),
        *((kind, off_by_a_hundredth, "do not add up") for kind in ("float64", "float32")),
    ],
)
def test_wrong_readers_are_found(monkeypatch, kind, wrong, why):
    """What a reader makes is compared with plain backward passes."""
    right = table.READERS["AddmmBackward0"]

    def read(*arguments):
        return [
            replace(reader, read=lambda *a, reader=reader: wrong(reader.read(*a)))
            for reader in right(*arguments)
        ]

    monkeypatch.setitem(table.READERS, "AddmmBackward0", read)
    torch.manual_seed(0)
    engines = Engine(), Engine()
    if kind != "float64":
        model, x = nn.Linear(4, 3), vectors(4).float()
        plain = lambda: losses_of(model, x)  # noqa: E731
        forward = halving(model, x) if kind == "autocast" else plain
        parameters = dict(model.named_parameters())
        engines[0].of_batch(parameters, forward, torch.ones(4), budget=1 << 20)
        engines[1].of_independent(parameters, forward, lambda i: forward()[i : i + 1])
    else:
        check(nn.Linear(4, 3).double(), vectors(4), vectors(3), engines)
    for engine in engines:
        assert all(why in path for path in engine.paths.values()), engine.paths


def test_another_graph_gets_its_own_plan():
    torch.manual_seed(0)
    model = Block(
        lambda s, x: s.a(x) if s.plain else s.a(x - x.mean(0) * s.a(x).mean()), a=nn.Linear(4, 3)
    ).double()
    engines = Engine(), Engine()
    for model.plain in (True, True, False):
        parameters, x = dict(model.named_parameters()), vectors(5)
        weights = torch.ones(5, dtype=torch.float64)
        found = engines[0].of_batch(
            parameters, lambda x=x: losses_of(model, x), weights, budget=1 << 20
        )
        expected = rows_of(losses_of(model, x), parameters)
        gram = products.inner(found, found, dict.fromkeys(parameters, 1.0))
        assert equal(gram, expected @ expected.T)
        assert complete(engines[0]) == (0 if model.plain else 2)


def halving(model, x):
    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return losses_of(model, x)

    return forward


@pytest.mark.parametrize(
    "name", ["mlp", "conv2d", "group-norm", "transformer", "tied", "embedding"]
)
def test_autocast_is_proven_to_the_rounding_of_its_operations(name):
    """Weights are float32, their gradients bfloat16: every one takes its fast way."""
    torch.manual_seed(0)
    build, data, _ = LAYERS[name]
    model, x = build(), data(6)
    forward = halving(model, x.float() if x.is_floating_point() else x)
    parameters, engine = dict(model.named_parameters()), Engine()
    found = engine.of_batch(parameters, forward, torch.ones(6), budget=1 << 20)
    assert not complete(engine), engine.paths
    r = rows_of(forward(), parameters).double()
    gram = products.inner(found, found, dict.fromkeys(parameters, 1.0))
    assert (gram - r @ r.T).norm() <= 2e-2 * (r @ r.T).norm()


def test_weak_coupling_is_found_under_autocast():
    """By factors that half precision multiplies by exactly: 1 % is seen through rounding."""
    torch.manual_seed(0)
    model, x = Sometimes(), vectors(64).float()
    model.much = 0.05
    parameters, engine = dict(model.named_parameters()), Engine()
    engine.of_batch(parameters, halving(model, x), torch.ones(64), budget=1 << 20)
    assert engine.paths["a.weight"].endswith("rows of its linear operation are not examples")


def test_gradients_that_cancel_are_not_mistaken_for_wrong_ones():
    """What is left of float32 sums is rounding, larger than any share of what is left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(300, 4))
    parameters = dict(model.named_parameters())
    x = torch.randn(32, 2, 12, 12).repeat_interleave(2, 0)
    weights = torch.tensor([1.0, -1.0]).repeat(32)
    engine = Engine(audit=1)
    for _ in range(2):
        engine.of_batch(parameters, lambda: losses_of(model, x), weights, budget=1 << 20)
        assert not any(path.startswith("complete") for path in engine.paths.values())


@pytest.mark.parametrize("kind", ["norm", "softmax"])
def test_an_audit_is_not_taken_in_by_rounding(monkeypatch, kind):
    """Gradients through a norm over two values cancel: mostly rounding of larger ones is left."""
    torch.manual_seed(0)
    if kind == "norm":
        middle = nn.Sequential(nn.Linear(16, 8), nn.GroupNorm(4, 8), nn.Tanh())
    else:
        middle = Block(lambda s, x: torch.softmax(30 * s.a(x), 1), a=nn.Linear(16, 8))
    model = nn.Sequential(middle, nn.Linear(8, 3))
    parameters, engine, asked = dict(model.named_parameters()), Engine(audit=2), []
    whole = plan.is_rounding
    monkeypatch.setattr(
        "replay.gradients.plans.is_rounding", lambda *a: asked.append(a) or whole(*a)
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(60):
        x = torch.randn(12, 16)
        losses_of(model, x).mean().backward()
        sgd.step()
        engine.of_batch(parameters, lambda x=x: losses_of(model, x), torch.ones(12), budget=1 << 20)
    assert asked
