"""Models in which data say what examples do to each other: a first pass in order proves nothing.

Each is exact at every pass of one engine, whose audits are far apart.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks import engine as benchmark
from replay.gradients import engine as module
from replay.gradients.engine import Engine
from replay.gradients.products import inner
from tracer.errors import GradientError

N, D, K = 6, 4, 3


class Model(nn.Module):
    """Two layers, with something between them that data control."""

    def __init__(self, run, width=5):
        super().__init__()
        self.a, self.b = nn.Linear(D, width), nn.Linear(width, K)
        self.e, self.width = nn.Embedding(N, width), width
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
    return s.b(torch.gather(torch.tanh(s.a(x)), 0, order[:, None].expand(-1, s.width)))


def time_first(s, x, order):
    return s.b(torch.tanh(s.a(x.expand(2, -1, -1)))[:, order].mean(0))


def features_first(s, x, order):
    h = torch.tanh(s.a(x)).T.contiguous()
    return s.b(torch.gather(h, -1, order.expand(s.width, -1)).T)


def looked_up(s, x, order):
    return s.b(F.embedding(order, torch.tanh(s.a(x))))


def looked_up_from_a_table(s, x, order):
    return s.b(torch.tanh(s.a(x)) + F.embedding(order, torch.tanh(s.e(torch.arange(len(x))))))


def scattered(s, x, order):
    return s.b(torch.zeros(len(x), s.width).double().index_copy(0, order, torch.tanh(s.a(x))))


def in_place(s, x, order):
    h, out = torch.tanh(s.a(x)), torch.zeros(len(x), s.width).double()
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


def made(run, told, rows=N, width=5):
    torch.manual_seed(0)
    model = Model(run, width).double()
    targets = [torch.randint(0, K, (N if len(t) == N else len(t),)) for t in told]
    xs = [torch.randn(rows, D, dtype=torch.float64) for _ in told]
    return model, list(zip(xs, told, targets, strict=True))


def in_a_bag(s, x, order):
    return s.b(F.embedding_bag(order[:, None], torch.tanh(s.a(x)), mode="sum"))


def bilinear(s, x, order):
    chosen = torch.eye(len(x)).double()[order]
    return s.b(F.bilinear(chosen, torch.ones_like(chosen[:, :1]), torch.tanh(s.a(x)).T[:, :, None]))


def sampled(s, x, order):
    """Rows of a picture of one channel, at heights that are data."""
    heights = (2 * order.double() + 1) / len(x) - 1
    across = (2 * torch.arange(s.width).double() + 1) / s.width - 1
    grid = torch.stack(torch.meshgrid(heights, across, indexing="ij")[::-1], -1)
    return s.b(F.grid_sample(torch.tanh(s.a(x))[None, None], grid[None], align_corners=False)[0, 0])


def unpooled(s, x, order):
    h = torch.tanh(s.a(x)).T[None]
    return s.b(F.max_unpool1d(h, order.expand_as(h), 1)[0].T)


def scatter(s, x, order):
    h = torch.tanh(s.a(x))
    return s.b(torch.zeros_like(h).scatter(0, order[:, None].expand_as(h), h))


def scatter_add(s, x, order):
    h = torch.tanh(s.a(x))
    return s.b(torch.zeros_like(h).scatter_add(0, order[:, None].expand_as(h), h))


def scatter_reduce(s, x, order):
    h = torch.tanh(s.a(x))
    return s.b(h.scatter_reduce(0, order[:, None].expand_as(h), h.sin(), "mean"))


def owners(order):
    """Whose the rows of a matrix are, as a mask ``(n, n)`` with one true entry in each row."""
    return torch.arange(len(order)) == order[:, None]


def masked_select(s, x, order):
    h = torch.tanh(s.a(x)).expand(len(x), -1, -1)
    return s.b(h.masked_select(owners(order)[..., None]).view(len(x), -1))


def masked_scatter(s, x, order):
    """The mask takes the rows of h one after the other, of which the last n are kept."""
    h = torch.cat([torch.tanh(s.a(x))] * 2)
    mask = torch.arange(2 * len(x)) >= order[0]
    return s.b(torch.zeros_like(h).masked_scatter(mask[:, None], h)[len(x) :])


def segments(s, x, order):
    """Segments of a column: of one row each, or of none and two."""
    h, lengths = torch.tanh(s.a(x)), 1 + torch.tensor([1, -1, 0, 0, 1, -1]) * order[0].sign()
    return s.b(torch.segment_reduce(h, "sum", lengths=lengths, unsafe=True))


def by_rank(h, order):
    """Make the order of the rows the order of their values."""
    return h + 9 * torch.argsort(order)[:, None]


def sorted_rows(s, x, order):
    return s.b(by_rank(torch.tanh(s.a(x)), order).sort(0).values.tanh())


def top(s, x, order):
    return s.b(by_rank(torch.tanh(s.a(x)), order).topk(len(x), 0).values.flip(0).tanh())


def taken(s, x, order):
    places = order[:, None] * s.width + torch.arange(s.width)
    return s.b(torch.take(torch.tanh(s.a(x)), places))


def put(s, x, order):
    h = torch.tanh(s.a(x))
    return s.b(torch.zeros_like(h).put(order[:, None] * s.width + torch.arange(s.width), h))


def window(s, x, order):
    """A slice that begins elsewhere."""
    k = int(order[0])
    return s.b(torch.cat([torch.tanh(s.a(x))] * 2)[k : k + len(x)])


def half(s, x, order):
    """Every row, or every other one, of as many: a slice of other steps."""
    step = 1 + int(order[0] > 0)
    return s.b(torch.cat([torch.tanh(s.a(x))] * 2)[: step * len(x) : step])


def sides(s, x, order):
    """A product with a constant from the right, or from the left."""
    h, c = torch.tanh(s.a(x))[:, :N], torch.eye(N).double().roll(1, 0)
    h = h @ c if order[0] == 0 else c @ h
    return s.b(F.pad(h, (0, s.width - h.shape[1])))


MOVING = (
    *(indexed, selected, gathered, time_first, features_first, looked_up),
    *(looked_up_from_a_table, scattered, in_place, by_python, multiplied, from_the_right),
    *(rolled, custom, in_a_bag, bilinear, sampled, unpooled, scatter, scatter_add),
    *(scatter_reduce, masked_select, masked_scatter, segments, sorted_rows, top, taken, put),
    *(window, half),
)


@pytest.mark.parametrize("width", [5, 6, 12])
@pytest.mark.parametrize("run", MOVING, ids=lambda run: run.__name__)
def test_rows_that_data_move(run, width):
    exact_at_every_pass(*made(run, ORDERS, width=width))


@pytest.mark.parametrize("width", [6, 12])
def test_a_product_from_the_other_side_is_another_graph(width):
    exact_at_every_pass(*made(sides, ORDERS, width=width))


def test_another_result_of_the_last_operation_is_another_graph():
    """Rows from 0 on, or from 9 on, of 18: example i is row i of each 6, or is not."""
    torch.manual_seed(0)
    a, x, engine = nn.Linear(D, 1).double(), torch.randn(18, D).double(), Engine(audit=1000)
    for number in (0, 2, 0):

        def forward(number=number):
            return torch.tanh(a(x))[:, 0].split([6, 3, 6, 3])[number]

        parameters = dict(a.named_parameters())
        found = engine.of_batch(parameters, forward, torch.ones(N), budget=1 << 20)
        for i, loss in enumerate(forward()):
            (own,) = torch.autograd.grad(loss, [a.weight], retain_graph=True)
            torch.testing.assert_close(found.rows("weight", torch.tensor([i])), own)


def test_a_slice_that_begins_at_one_row_in_batches_of_two_sizes():
    """At a multiple of 6, and not of 7: rows of two copies in order, or turned by one."""

    def run(s, x, told):
        n = len(x)
        h = torch.cat([torch.tanh(s.a(x))] * 8)[6 : 6 + 2 * n]
        return s.b(h.view(2, n, -1).sum(0))

    model, passes = made(run, ORDERS)
    passes[1] = tuple(torch.cat([one, one[:1]]) for one in passes[1])
    exact_at_every_pass(model, passes)


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
    assert engine._plans


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
    assert [proven.passes for proven in engine._plans.values()] == [2]


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
    assert engine._plans
