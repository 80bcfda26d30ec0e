"""Products of per-example gradients stay within their budget of memory."""

from __future__ import annotations

import pytest
import torch

from replay.gradients.forms import products
from replay.gradients.forms.convolution import Convolved, Geometry
from replay.gradients.forms.dense import Dense
from replay.gradients.forms.lookup import Lookup
from replay.gradients.forms.outer_products import OuterProducts
from replay.gradients.forms.per_example import PerExample
from tests.helpers.peaks import peak_bytes, took


def outer(n, rows, d, p):
    return OuterProducts(torch.randn(n, rows, d), torch.randn(n, rows, p), 0, p)


def convolved(n):
    geometry = Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1)
    return Convolved(torch.randn(n, 1, 16, 20, 20), torch.randn(n, 1, 32, 18, 18), geometry)


def looked_up(n):
    return Lookup(torch.randint(-1, 900, (n, 700)), torch.randn(n, 700, 64), 900)


SMALL = 4 << 20


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda: outer(50, 16, 256, 256), lambda: outer(60, 16, 256, 256)),
        (lambda: outer(200, 64, 512, 512), lambda: outer(2, 64, 512, 512)),
        (lambda: outer(2, 64, 512, 512), lambda: outer(200, 64, 512, 512)),
        (lambda: outer(1, 600, 1024, 1024), lambda: outer(1, 600, 1024, 1024)),
        (lambda: convolved(50), lambda: convolved(60)),
    ],
    ids=["sequences", "many-left", "many-right", "long-sequences", "convolution"],
)
def test_products_keep_to_their_budget(left, right):
    torch.manual_seed(0)
    left, right = left(), right()
    small, found = took(SMALL, lambda: left.inner(right))
    large, expected = took(2 << 30, lambda: left.inner(right))
    assert small <= SMALL < large
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "form",
    [
        outer(600, 1, 9, 8),
        outer(500, 2, 64, 64),
        outer(500, 40, 8, 8),
        Dense(torch.randn(600, 8, 1)),
        Lookup(torch.randint(9, (600, 3)), torch.randn(600, 3, 4), 9),
    ],
    ids=["one-row", "gram", "formed", "written-out", "embedding"],
)
def test_products_of_many_take_no_memory_again(form):
    """What is freed is not always used again: torch's blocks are aligned, glibc's holes are not."""
    examples = PerExample(torch.zeros(form.count), {"w": form}, {})
    job = lambda: products.inner(examples, examples, {"w": 0.5}, "scores")  # noqa: E731
    expected = products.inner(examples, examples, {"w": 0.5})
    assert torch.equal(job(), expected)
    assert peak_bytes(job) < expected.nbytes / 4


FORMS = {
    "gram": lambda: outer(64, 128, 256, 256),
    "gram-of-one": lambda: outer(2, 700, 1024, 1024),
    "formed": lambda: outer(20, 512, 256, 256),
    "formed-of-one": lambda: outer(1, 1100, 1024, 1024),
    "embedding": lambda: looked_up(30),
    "convolution": lambda: convolved(100),
    "rows": lambda: Dense(torch.randn(40, 20_000, 1)),
    "row": lambda: Dense(torch.randn(1, 800_000, 1)),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS.keys())
def test_squared_norms_keep_to_their_budget(make):
    torch.manual_seed(0)
    form = make()
    small, found = took(SMALL, form.squared_norms)
    large, whole = took(2 << 30, form.squared_norms)
    assert small <= SMALL < large
    expected = form.dense(slice(0, form.shape[0])).double().square().sum(1)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(whole, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["gram", "embedding", "convolution"])
def test_projections_keep_to_their_budget(name):
    torch.manual_seed(0)
    form = FORMS[name]()
    direction = torch.randn(form.shape)
    examples = PerExample(torch.zeros(form.count), {"w": form}, {})
    job = lambda: products.project(examples, [{"w": direction}])[0]  # noqa: E731
    (small, found), (large, whole) = took(SMALL, job), took(2 << 30, job)
    assert small <= SMALL < large
    expected = form.dense(slice(0, form.shape[0])).double() @ direction.flatten().double()
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (whole - expected).norm() <= 1e-5 * expected.norm()


def test_sums_of_convolutions_keep_to_their_budget():
    torch.manual_seed(0)
    shape = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    form = Convolved(torch.randn(60, 1, 64, 8, 8), torch.randn(60, 1, 64, 8, 8), shape)
    small, found = took(SMALL, form.summed)
    assert small <= SMALL  # each block's sum is as large as the weight, 147 kB
    expected = form.dense(slice(0, 64)).double().sum(0).view(form.shape)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
