"""Models in which data say what examples do to each other: a first pass in order proves nothing.

Each is exact at every pass of one engine, whose audits are far apart.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.engine import Engine
from tests.helpers.steady import ORDERS, D, N, back, exact_at_every_pass, indexed, made


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
