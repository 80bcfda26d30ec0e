"""Models in which data say what examples do to each other: a first pass in order proves nothing.

Each is exact at every pass of one engine, whose audits are far apart.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from replay.gradients import engine as module
from replay.gradients.engine import Engine
from tracer.errors import GradientError

N, D, K = 6, 4, 3


class Model(nn.Module):
    """Two layers, with something between them that data control."""

    def __init__(self, run):
        super().__init__()
        self.a, self.b, self.e = nn.Linear(D, 5), nn.Linear(5, K), nn.Embedding(N, 5)
        self.run = run

    def forward(self, x, told):
        return self.run(self, x, told)


def back(rows, order):
    return rows[torch.argsort(order)]


def indexed(s, x, order):
    return back(s.b(torch.tanh(s.a(x[order]))), order)


def selected(s, x, order):
    return s.b(torch.tanh(s.a(x)).index_select(0, order))


def gathered(s, x, order):
    return s.b(torch.gather(torch.tanh(s.a(x)), 0, order[:, None].expand(-1, 5)))


def time_first(s, x, order):
    return s.b(torch.tanh(s.a(x.expand(2, -1, -1)))[:, order].mean(0))


def features_first(s, x, order):
    h = torch.tanh(s.a(x)).T.contiguous()
    return s.b(torch.gather(h, -1, order.expand(5, -1)).T)


def looked_up(s, x, order):
    return s.b(F.embedding(order, torch.tanh(s.a(x))))


def looked_up_from_a_table(s, x, order):
    return s.b(torch.tanh(s.a(x)) + F.embedding(order, torch.tanh(s.e(torch.arange(len(x))))))


def scattered(s, x, order):
    return s.b(torch.zeros(len(x), 5).double().index_copy(0, order, torch.tanh(s.a(x))))


def in_place(s, x, order):
    h, out = torch.tanh(s.a(x)), torch.zeros(len(x), 5).double()
    for k, place in enumerate(order.tolist()):
        out[place] = h[k]
    return s.b(out)


def by_python(s, x, order):
    h = torch.tanh(s.a(x))
    return s.b(torch.stack([h[k] for k in order.tolist()]))


def multiplied(s, x, order):
    return s.b(torch.eye(len(x)).double()[order] @ torch.tanh(s.a(x)))


def from_the_right(s, x, order):
    return s.b((torch.tanh(s.a(x)).T.contiguous() @ torch.eye(len(x)).double()[order].T).T)


def rolled(s, x, order):
    return s.b(torch.roll(torch.tanh(s.a(x)), int(order[0]), 0))


class Custom(torch.autograd.Function):
    """Permutes rows where autograd's own operations do not show it."""

    @staticmethod
    def forward(ctx, x, order):
        ctx.order = order
        return x[order]

    @staticmethod
    def backward(ctx, grad):
        return back(grad, ctx.order), None


def custom(s, x, order):
    return s.b(Custom.apply(torch.tanh(s.a(x)), order))


ORDERS = [torch.arange(N), torch.tensor([3, 1, 0, 5, 4, 2]), torch.arange(N)]


def summed(rows, owner, n):
    """Add up each sequence's rows, by no operation that is proven at every pass itself."""
    members = (owner == torch.arange(n)[:, None]).to(rows)
    return (members[:, :, None] * rows).sum(1)


def packed(s, x, lengths):
    """Sequences in one row attend to their own part."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    h = torch.tanh(s.a(x))
    scores = (h @ h.T).masked_fill(owner[:, None] != owner, -1e30)
    out = s.b(scores.softmax(-1) @ h)
    return summed(out, owner, len(lengths))


def attending(s, x, lengths):
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    h = torch.tanh(s.a(x))[None]
    mask = owner[:, None] == owner
    out = s.b(F.scaled_dot_product_attention(h, h, h, attn_mask=mask)[0])
    return summed(out, owner, len(lengths))


LENGTHS = [torch.tensor([4, 4, 4]), torch.tensor([2, 7, 3]), torch.tensor([4, 4, 4])]


def exact_at_every_pass(model, passes, engine=None):
    engine = engine or Engine(audit=1000)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for x, told, y in passes:

        def forward(x=x, told=told, y=y):
            return F.cross_entropy(model(x, told), y, reduction="none")

        weights = torch.ones(len(y), dtype=torch.float64)
        found = engine.of_batch(parameters, forward, weights, budget=1 << 20)
        losses = forward()
        for i in range(len(y)):
            own = torch.autograd.grad(
                losses[i], list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for (name, p), g in zip(parameters.items(), own, strict=True):
                expected = torch.zeros_like(p) if g is None else g
                row = found.rows(name, torch.tensor([i]))[0] if name in found.names else 0 * p
                gap = (row.flatten() - expected.flatten()).norm()
                assert gap <= 1e-12 * max(1.0, float(expected.norm())), (name, i)
    return engine


def made(run, told, rows=N):
    torch.manual_seed(0)
    model = Model(run).double()
    targets = [torch.randint(0, K, (N if len(t) == N else len(t),)) for t in told]
    xs = [torch.randn(rows, D, dtype=torch.float64) for _ in told]
    return model, list(zip(xs, told, targets, strict=True))


@pytest.mark.parametrize(
    "run",
    [
        *(
            indexed,
            selected,
            gathered,
            time_first,
            features_first,
            looked_up,
            looked_up_from_a_table,
            scattered,
            in_place,
            by_python,
            multiplied,
        ),
        *(from_the_right, rolled, custom),
    ],
    ids=lambda run: run.__name__,
)
def test_rows_that_data_move(run):
    exact_at_every_pass(*made(run, ORDERS))


@pytest.mark.parametrize("run", [packed, attending], ids=lambda run: run.__name__)
def test_sequences_packed_into_one_row(run):
    exact_at_every_pass(*made(run, LENGTHS, rows=12))


def test_batch_norm_in_another_mode_is_another_graph():
    torch.manual_seed(0)
    model = Model(lambda s, x, told: s.b(s.norm(s.a(x))))
    model.norm = nn.BatchNorm1d(5)
    model = model.double()
    _, passes = made(indexed, ORDERS)
    engine = Engine(audit=1000)
    for training in (False, True, False):
        exact_at_every_pass(model.train(training), passes[:1], engine)
        assert engine.paths["a.weight"].startswith("complete") == training


def last_token(s, x, told):
    h = torch.tanh(s.a(x[:, None].expand(-1, 2, -1)))
    return s.b(h[torch.arange(len(x)), told % 2])


def some_columns(s, x, told):
    return s.b(torch.tanh(s.a(x))[:, [2, 0, 1, 4, 3]])


def log_probabilities(s, x, told):
    scores = s.b(torch.tanh(s.a(x))).log_softmax(-1)
    return scores + torch.gather(scores, -1, (told % K)[:, None])


def low_rank(s, x, told):
    return s.b(F.linear(x, s.a.weight + s.e.weight[:5, :2] @ s.e.weight[:2, :D]))


def attention(s, x, told):
    h = s.a(x)[:, None].expand(-1, 3, -1)
    return s.b(F.scaled_dot_product_attention(h, h, h).mean(1))


@pytest.mark.parametrize(
    "run",
    [last_token, some_columns, log_probabilities, low_rank, attention],
    ids=lambda run: run.__name__,
)
def test_what_leaves_rows_alone_is_proven_once(run):
    model, passes = made(run, ORDERS)
    engine = exact_at_every_pass(model, passes)
    assert engine._plans


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
        kept.append(len(engine._plans))
        depths.pop(0)
    assert kept == [1, 2, 2, 2, 2, 2, 2]
    assert sorted(proven.passes for proven in engine._plans.values()) == [0, 1]


def test_reentrant_checkpoints_are_refused():
    def run(s, x, told):
        return s.b(checkpoint(lambda x: torch.tanh(s.a(x)), x.requires_grad_(), use_reentrant=True))

    with pytest.raises(GradientError, match="use_reentrant=False"):
        exact_at_every_pass(*made(run, ORDERS))
