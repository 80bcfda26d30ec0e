"""Which changes between passes make another graph, which is proven anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.engine import Engine
from replay.gradients.forms.products import inner
from tests.helpers.steady import ORDERS, K, Model, N, exact_at_every_pass, indexed, made


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


ALONG = {
    "flip": lambda h, dim: h.flip(dim),
    "roll": lambda h, dim: h.roll(1, dim),
    "cumsum": lambda h, dim: h.cumsum(dim),
    "softmax": lambda h, dim: h.softmax(dim),
    "sort": lambda h, dim: h.sort(dim).values,
    "gather": lambda h, dim: h.gather(dim, torch.zeros(N, N, dtype=torch.long)),
    "index_select": lambda h, dim: h.index_select(dim, torch.zeros(N, dtype=torch.long)),
    "amax": lambda h, dim: h.amax(dim)[:, None].expand(N, N),
    "transpose": lambda h, dim: h.transpose(dim, 1),
    "permute": lambda h, dim: h.permute((0, 1) if dim else (1, 0)),
    "repeat": lambda h, dim: h.repeat((1, 2) if dim else (2, 1)).view(-1)[: N * N].view(N, N),
    "unbind": lambda h, dim: torch.stack(h.unbind(dim), 1),
    "stack": lambda h, dim: torch.stack(h.unbind(1), dim),
    "split": lambda h, dim: torch.cat(h.split(1, dim), 1).reshape(N, N),
    "cat": lambda h, dim: (
        torch.cat(h.split(1, 1), 1) + torch.cat(h.sin().T.split(1, 1), dim).T
        if dim
        else h.sin().T.contiguous()
    ),
    "select": lambda h, dim: h.select(dim, 1)[:, None].expand(N, N),
    "pad": lambda h, dim: F.pad(h, (1, -1) if dim else (0, 0, 1, -1)),
    "layer_norm": lambda h, dim: F.layer_norm(h[None], (N,) if dim else (N, N))[0],
    "unfold": lambda h, dim: h.unfold(dim, 1, 1)[..., 0],
}


@pytest.mark.parametrize("run", ALONG.values(), ids=ALONG)
def test_another_dimension_is_another_graph(run):
    """Of a square matrix: no shape tells them apart."""

    def between(s, x, order):
        return s.b(run(torch.tanh(s.a(x)), int(order[0] == 0)))

    engine = exact_at_every_pass(*made(between, ORDERS, width=N))
    assert engine._plans.known


def heads(s, x, lengths):
    """As many heads as there are sequences."""
    owner, n = torch.repeat_interleave(torch.arange(len(lengths)), lengths), len(lengths)
    h = torch.tanh(s.a(x)).unflatten(1, (n, -1)).transpose(0, 1)
    scores = (h @ h.mT).masked_fill(owner[:, None] != owner, -1e30)
    return summed(s.b((scores.softmax(-1) @ h).transpose(0, 1).flatten(1)), owner, n)


def test_sequences_packed_into_one_row_with_as_many_heads():
    exact_at_every_pass(*made(heads, LENGTHS, rows=12, width=6))


def routed(s, x, route):
    """Each expert gets the rows that are sent to it, or none."""
    h, out = torch.tanh(s.a(x)), torch.zeros(len(x), K).double()
    for expert in range(3):
        rows = (route == expert).nonzero()[:, 0]
        out = out.index_copy(0, rows, (expert + 1) * s.b(h[rows]))
    return out


def prefixed(s, x, told):
    """Some entries are changed, or none."""
    h, count = torch.tanh(s.a(x))[..., None], int(told[0])
    return s.b(torch.cat([h[:, :count].sin(), h[:, count:]], 1)[..., 0])


@pytest.mark.parametrize("run", [routed, prefixed], ids=lambda run: run.__name__)
def test_parts_without_entries(run):
    told = [torch.tensor(one) for one in ([1, 2, 0, 0, 2, 1], [0, 1, 1, 0, 0, 1], [0] * N)]
    exact_at_every_pass(*made(run, told))


def scaled(s, x, order):
    factor = 1 if order[0] == 0 else 0.5
    return torch.addmm(s.b.bias, torch.tanh(s.a(x)), s.b.weight.T, alpha=factor)


def by_frequency(s, x, order):
    rows = F.embedding(order % 2, s.e.weight, scale_grad_by_freq=bool(order[0]))
    return s.b(torch.tanh(s.a(x)) + rows)


def seldom(s, x, chosen):
    """A layer for some rows, or none."""
    h, rows = torch.tanh(s.a(x)), chosen.nonzero()[:, 0]
    return h[:, :K].index_add(0, rows, s.b(h[rows]))


def test_a_layer_without_rows_of_one_example():
    model, ((x, told, y),) = made(seldom, [torch.tensor([0])], rows=1)

    def forward(*_):
        return F.cross_entropy(model(x, told), y[:1], reduction="none")

    parameters = dict(model.named_parameters())
    found = Engine().of_independent(parameters, forward, forward)
    assert inner(found, found, {"b.weight": 1.0}) == 0


@pytest.mark.parametrize("run", [scaled, by_frequency], ids=lambda run: run.__name__)
def test_what_cannot_be_read_is_another_graph(run):
    exact_at_every_pass(*made(run, ORDERS))


def test_coupling_that_is_switched_on():
    """A mean that is multiplied by zero at first."""

    def run(s, x, order):
        h = torch.tanh(s.a(x))
        return s.b(h + order[0] * h.mean(0))

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
