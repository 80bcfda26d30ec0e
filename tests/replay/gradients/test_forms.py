"""Every form against gradients that are written out by another route, in float64.

A new form joins by one row of ``FORMS``: what makes it, and its gradients ``(n, 6, 8)``.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from replay.gradients.forms import products
from replay.gradients.forms.convolution import Convolved, Geometry
from replay.gradients.forms.dense import Dense
from replay.gradients.forms.lookup import Lookup
from replay.gradients.forms.outer_products import OuterProducts
from replay.gradients.forms.per_example import PerExample
from replay.gradients.forms.sum import added
from replay.vectors.workspace import temporaries

R, C = 6, 8
SHAPE = (R, C)


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def dense(n):
    g = numbers(n, R, C)
    return Dense(g), g


def outer(rows, start=0, p=R):
    def make(n):
        a, d = numbers(n, rows, C), numbers(n, rows, p)
        g = torch.zeros(n, R, C, dtype=torch.float64)
        g[:, start : start + p] = torch.einsum("ntp,ntd->npd", d, a)
        return OuterProducts(a, d, start, R), g

    return make


def lookup(n):
    tokens, d = torch.randint(-1, R, (n, 5)), numbers(n, 5, C)
    held = tokens[:, :, None] == torch.arange(R)
    return Lookup(tokens, d, R), torch.einsum("ntv,ntd->nvd", held.double(), d)


def convolved(calls, groups):
    """Two channels a group, windows of two by two; several images an example."""

    def make(n):
        windows = Geometry((2, 2), (2, 1), (1, 0), (1, 2), groups)
        images, deltas = numbers(n, calls, 2 * groups, 4, 5), numbers(n, calls, R, 3, 3)
        weight = torch.zeros(R, 2, 2, 2, dtype=torch.float64, requires_grad=True)
        options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": groups}
        g = [
            torch.autograd.grad((F.conv2d(image, weight, **options) * delta).sum(), weight)[0]
            for image, delta in zip(images, deltas, strict=True)
        ]
        return Convolved(images, deltas, windows), torch.stack(g).flatten(2)

    return make


def total(*makers):
    def make(n):
        made = [maker(n) for maker in makers]
        return added([form for form, _ in made]), sum(g for _, g in made)

    return make


FORMS = {
    "dense": dense,
    "outer": outer(1),
    "outer-sequences": outer(3),
    "outer-long-sequences": outer(40),
    "outer-of-some-rows": outer(1, start=2, p=3),
    "outer-sequences-of-some-rows": outer(2, start=1, p=3),
    "lookup": lookup,
    "convolution": convolved(1, 1),
    "convolution-folded": convolved(2, 1),
    "convolution-groups": convolved(2, 3),
    "sum": total(lookup, outer(3), outer(1, start=1, p=2), convolved(1, 1), dense),
}


def close(found, expected, kind=torch.float64):
    assert found.dtype == kind
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=[1, 1 << 13, 1 << 30], ids=["least-memory", "little", "enough"])
def room(request):
    with temporaries(request.param):
        yield


@pytest.fixture(params=FORMS)
def made(request):
    torch.manual_seed(0)
    return FORMS[request.param](5)


def test_what_it_is(made, room):
    form, g = made
    assert (form.count, form.shape) == (5, SHAPE)
    close(form.dense(slice(0, R)), g.flatten(1))
    close(form.dense(slice(1, 4), "role"), g[:, 1:4].flatten(1))
    close(form.summed(), g.sum(0))
    for chosen in (slice(1, 3), torch.tensor([4, 0, 4])):
        close(form.select(chosen).dense(slice(0, R)), g[chosen].flatten(1))
    close(sum(term.dense(slice(0, R)) for term in form.terms), g.flatten(1))
    if form.factors is not None:
        close(torch.einsum("np,nd->npd", *form.factors), g)


def test_its_products(made, room):
    form, g = made
    v = numbers(3, R * C)
    close(form.with_vectors(v), g.flatten(1) @ v.T)
    close(form.project(v[0].view(R, C)), g.flatten(1) @ v[0])
    left, right = numbers(R), numbers(C)
    close(form.sketch(left, right), torch.einsum("nrc,r,c->n", g, left, right))
    close(form.squared_norms(0.3), 0.3 * g.square().sum((1, 2)))
    close(form.weighted_squares(v[1]), g.flatten(1).square() @ v[1])


def test_inner_products_with_every_form(made, room):
    """Also with gradients computed anew, which are seen as one column."""
    form, g = made
    for make in FORMS.values():
        other, h = make(3)
        close(form.inner(other), torch.einsum("nrc,mrc->nm", g, h))
        column = Dense(h.flatten(1)[:, :, None])
        close(form.inner(column), torch.einsum("nrc,mrc->nm", g, h))
        close(column.inner(form), torch.einsum("nrc,mrc->mn", g, h))


def test_tensors_that_are_overwritten(made):
    form, g = made[0], made[1].clone()
    kept = form.kept(frozenset(t.untyped_storage().data_ptr() for t in form.tensors))
    for tensor in form.tensors:
        tensor.zero_()
    close(kept.dense(slice(0, R)), g.flatten(1))


def test_sums_with_every_form(made):
    """Calls of one layer become one form of the same class, where that class can."""
    form, g = made
    for make in FORMS.values():
        other, h = make(5)
        found = added([form, other])
        close(found.dense(slice(0, R)), (g + h).flatten(1))
        joins = type(form) is type(other) and form.alike is not None and form.alike == other.alike
        assert (type(found) is type(form)) == joins or len(form.terms) > 1


def test_parameters_that_are_left_out():
    """Of those that are stored, and of those that are computed anew, in blocks."""
    torch.manual_seed(0)
    (stored, g), anew = dense(3), {"b": numbers(3, 4), "c": numbers(3, 2)}

    def blocks():
        for rows in (slice(0, 2), slice(2, 3)):
            yield rows, {name: one[rows] for name, one in anew.items()}

    found = PerExample(numbers(3), {"a": stored, "d": stored}, {}, ("b", "c"), blocks)
    expected = 2 * torch.einsum("nrc,mrc->nm", g, g) + 3 * anew["b"] @ anew["b"].T
    close(products.inner(found, found, {"a": 2.0, "b": 3.0, "c": 0.0, "e": 1.0}), expected)
    squares = products.weighted_squares(found, {"a": 2.0, "b": 3.0, "e": 1.0})
    close(squares, expected.diagonal())
