"""Per-example gradients and their products against one backward an example."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replay.gradients.engine import Engine
from replay.gradients.forms import products
from replay.gradients.proof.layout import FIRST, LAST, Layout, prove
from replay.vectors.workspace import temporaries
from tests.helpers.layers import LAYERS, Block, check, complete, images, losses_of, rows_of


@pytest.mark.parametrize("budget", [1, 1 << 30], ids=["recomputed", "stored"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_plain_backwards(name, budget):
    torch.manual_seed(0)
    build, data, uncovered = LAYERS[name]
    model = build().double()
    engines = Engine(), Engine()
    with temporaries(budget):  # in the smallest blocks, or in one
        check(model, data(5), data(3), engines, budget)
        assert complete(engines[0]) == uncovered, engines[0].paths
        check(model, data(4), data(6), engines, budget)  # by the plan that was proven
        check(model, data(1), data(1), engines, budget)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.integers(1, 4),
)
def test_convolutions(dims, groups, kernel, stride, padding, dilation, transposed, n):
    torch.manual_seed(0)
    kinds = (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        (
            nn.ConvTranspose1d,
            nn.ConvTranspose2d,
            nn.ConvTranspose3d,
        ),
    )
    padding = min(padding, dilation * (kernel - 1) // 2 if transposed else padding)
    kind = kinds[transposed][dims - 1]
    model = kind(
        2 * groups, 3 * groups, kernel, stride, padding, dilation=dilation, groups=groups
    ).double()
    side = {1: 11, 2: 6, 3: 5}[dims]
    x, y = (torch.randn(k, 2 * groups, *(side,) * dims, dtype=torch.float64) for k in (n, 2))
    engines = Engine(), Engine()
    check(model, x, y, engines)
    assert not complete(engines[0])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)
)
def test_tied_sequences(n, m, length, other, calls):
    """An embedding tied to its head, a layer called several times, lengths that differ."""
    torch.manual_seed(0)

    def forward(self, x):
        h = self.e(x)
        for _ in range(calls):
            h = torch.tanh(self.n(self.a(h)))
        return h @ self.e.weight.T

    model = Block(forward, e=nn.Embedding(7, 3), a=nn.Linear(3, 3), n=nn.LayerNorm(3)).double()
    engines = Engine(), Engine()
    check(model, torch.randint(0, 7, (n, length)), torch.randint(0, 7, (m, other)), engines)
    assert not complete(engines[0])


@pytest.mark.parametrize("layout", [FIRST, LAST, Layout(2, 3)])
def test_layouts(layout):
    torch.manual_seed(0)
    n, size = 4, 24
    r = torch.tensor([0.5, -1.1, 0.7, 1.4])
    outer = layout.outer or size // (n * layout.inner)
    owner = torch.arange(size).view(outer, n, -1)
    owner = torch.arange(n).view(1, n, 1).expand_as(owner).flatten()
    delta = torch.randn(size, 2)
    found, only = prove(delta, delta * r[owner, None], r, 1, 1e-6)
    assert only
    assert found is not None
    arranged = found.arrange(delta, 1, n)
    for i in range(n):
        assert torch.equal(arranged[i], delta[owner == i])
    shuffled = delta * r[owner.roll(1), None]
    assert prove(delta, shuffled, r, 1, 1e-6)[0] is None


def alone(model, z):
    return lambda i: losses_of(model, z[i : i + 1])


def test_float32_is_right_to_its_rounding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 10))
    x, y = images(6).float(), images(5).float()
    twin = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 10))
    twin.load_state_dict(model.state_dict())
    twin.double()
    parameters = dict(model.named_parameters())
    train, test = (
        Engine().of_independent(
            parameters,
            lambda z=z: losses_of(model, z),
            alone(model, z),
        )
        for z in (x, y)
    )
    r, q = (rows_of(losses_of(twin, z.double()), dict(twin.named_parameters())) for z in (x, y))
    found = products.inner(train, test, dict.fromkeys(parameters, 1.0))
    assert (found - r @ q.T).abs().max() <= 1e-5 * (r.norm(dim=1).max() * q.norm(dim=1).max())


@pytest.mark.parametrize("name", LAYERS)
def test_float32_is_right_to_its_rounding_on_every_layer(name):
    torch.manual_seed(0)
    build, data, _ = LAYERS[name]
    model, exact = build(), build().double()
    exact.load_state_dict(model.state_dict())
    x, y = data(5), data(3)
    near = [z.float() if z.is_floating_point() else z for z in (x, y)]
    parameters = dict(model.named_parameters())
    train = Engine().of_batch(
        parameters, lambda: losses_of(model, near[0]), torch.ones(5), budget=1 << 20
    )
    r = rows_of(losses_of(exact, x), dict(exact.named_parameters()))
    model.eval(), exact.eval()
    test = Engine().of_independent(
        parameters, lambda: losses_of(model, near[1]), alone(model, near[1])
    )
    each = [losses_of(exact, y[i : i + 1]) for i in range(len(y))]
    q = torch.cat([rows_of(loss, dict(exact.named_parameters())) for loss in each])
    found = products.inner(train, test, dict.fromkeys(parameters, 1.0))
    assert ((found - r @ q.T).abs() <= 1e-5 * r.norm(dim=1)[:, None] * q.norm(dim=1)).all()
