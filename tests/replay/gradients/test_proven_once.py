"""What leaves examples alone is proven once, and later passes are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks import engine as benchmark
from replay.gradients import plans as module
from replay.gradients.engine import Engine
from tests.helpers.steady import ORDERS, D, K, exact_at_every_pass, made
from tracer.errors import GradientError


def last_token(s, x, told):
    h = torch.tanh(s.a(x[:, None].expand(-1, 2, -1)))
    return s.b(h[torch.arange(len(x)), told % 2])


def some_columns(s, x, told):
    return s.b(torch.tanh(s.a(x))[:, torch.arange(s.width).roll(1)])


def one_by_one(s, x, told):
    return s.b(torch.stack([h.sort().values for h in torch.tanh(s.a(x))]))


def own_probability(s, x, told):
    scores = s.b(torch.tanh(s.a(x))).log_softmax(-1)
    return scores * scores[torch.arange(len(x)), told % K][:, None]


def columns_first(s, x, told):
    return s.b((torch.tanh(s.a(x)).T.contiguous() * 2).T)


def log_probabilities(s, x, told):
    scores = s.b(torch.tanh(s.a(x))).log_softmax(-1)
    return scores + torch.gather(scores, -1, (told % K)[:, None])


def low_rank(s, x, told):
    return s.b(F.linear(x, s.a.weight + s.e.weight.T[:, :2] @ s.e.weight[:2, :D]))


def attention(s, x, told):
    h = s.a(x)[:, None].expand(-1, 3, -1)
    return s.b(F.scaled_dot_product_attention(h, h, h).mean(1))


@pytest.mark.parametrize("width", [5, 6, 12])
@pytest.mark.parametrize(
    "run",
    [
        *(last_token, some_columns, log_probabilities, low_rank, attention),
        *(one_by_one, own_probability, columns_first),
    ],
    ids=lambda run: run.__name__,
)
def test_what_leaves_rows_alone_is_proven_once(run, width):
    engine = exact_at_every_pass(*made(run, ORDERS, width=width))
    assert [proven.followed for proven in engine._plans.known.values()] == [2]


def test_plans_of_many_graphs_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 2)
    depths = [1, 2, 3, 1, 2, 3, 3]

    def deep(s, x, told):
        h = s.a(x)
        for _ in range(depths[0]):
            h = torch.tanh(h)
        return s.b(h)

    model, passes = made(deep, ORDERS)
    engine = Engine(audit=1000)
    kept = []
    while depths:
        exact_at_every_pass(model, passes[:1], engine)
        kept.append(len(engine._plans.known))
        depths.pop(0)
    assert kept == [1, 2, 2, 2, 2, 2, 2]
    assert sorted(proven.followed for proven in engine._plans.known.values()) == [0, 1]


def test_reentrant_checkpoints_are_refused():
    def run(s, x, told):
        return s.b(checkpoint(lambda x: torch.tanh(s.a(x)), x.requires_grad_(), use_reentrant=True))

    with pytest.raises(GradientError, match="use_reentrant=False"):
        exact_at_every_pass(*made(run, ORDERS))


def encoder(n, **options):
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **options)
    return layer, torch.randn(n, 6, 6)


COMMON = {
    **{name: lambda n, c=case: (c.model(), c.data(n)[0]) for name, case in benchmark.CASES.items()},
    "encoder": encoder,
    "encoder-norm-first": lambda n: encoder(n, norm_first=True, activation="gelu"),
    "gru": lambda n: (nn.GRU(4, 6, batch_first=True), torch.randn(n, 6, 4)),
}


@pytest.mark.parametrize("build", COMMON.values(), ids=COMMON)
def test_common_models_are_proven_once(build):
    torch.manual_seed(0)
    model, x = build(6)
    engine, parameters = Engine(audit=1000), dict(model.named_parameters())

    def forward():
        out = model(x)
        return (out[0] if isinstance(out, tuple) else out).flatten(1).square().mean(1)

    engine.of_batch(parameters, forward, torch.ones(6), budget=1 << 30)
    assert engine._plans.known
