"""Per-example gradients and their products against one backward an example."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from replay.gradients import products, proof, uses
from replay.gradients.engine import Engine
from replay.gradients.layout import FIRST, LAST, Layout, prove
from replay.gradients.outer import Outer, formed, ghost
from replay.gradients.pieces import Rows
from replay.gradients.workspace import temporaries
from tracer.errors import GradientError

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


class Block(nn.Module):
    """Modules and parameters by name, joined by a function."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.joined = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.joined(self, x)


def vectors(n):
    return torch.randn(n, 4, dtype=torch.float64)


def sequences(n):
    return torch.randn(n, 7, 4, dtype=torch.float64)


def tokens(n):
    return torch.randint(0, 9, (n, 7))


def images(n):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64)


def attention(forward, **options):
    return lambda: Block(forward, m=nn.MultiheadAttention(4, 2, **options))


def self_attention(self, x):
    return self.m(x, x, x)[0]


def time_first(self, x):
    x = x.transpose(0, 1)
    return self.m(x, x, x)[0].transpose(0, 1)


def transformer(**parts):
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)


def bare(*shape):
    return nn.Parameter(torch.randn(shape))


def channels_last():
    """A convolutional model in the layout of memory that a GPU prefers."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2, groups=2)
    )
    model = Block(lambda s, x: s.m(x.contiguous(memory_format=torch.channels_last)), m=model)
    return model.to(memory_format=torch.channels_last)


def pixel_wise():
    """A Linear layer over channels, whose result lies in memory as a transposed view."""
    return Block(
        lambda s, x: s.c(s.n(s.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))),
        a=nn.Linear(3, 4),
        n=nn.GroupNorm(2, 4),
        c=nn.Conv2d(4, 2, 3),
    )


# model, inputs, parameters that must take the complete way in train mode
LAYERS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), vectors, 0),
    "in-place": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True)), vectors, 0),
    "no-bias": (lambda: nn.Linear(4, 3, bias=False), vectors, 0),
    "sequences": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=False)),
        sequences,
        0,
    ),
    "time-first": (
        lambda: Block(lambda s, x: s.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(4, 3)),
        sequences,
        0,
    ),
    "examples-inside": (
        lambda: Block(
            lambda s, x: s.a(x.reshape(-1, 7, 2, 2).permute(1, 0, 2, 3)).transpose(0, 1),
            a=nn.Linear(2, 3),
        ),
        sequences,
        0,
    ),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv2d(4, 6, (1, 3))),
        images,
        0,
    ),
    "conv2d-circular": (
        lambda: nn.Conv2d(3, 6, 3, groups=3, padding=2, dilation=2, padding_mode="circular"),
        images,
        0,
    ),
    "conv-frames": (
        lambda: Block(
            lambda s, x: s.a(x.reshape(-1, 1, 8, 8)).reshape(len(x), -1), a=nn.Conv2d(1, 2, 3)
        ),
        images,
        0,
    ),
    "conv1d": (lambda: nn.Conv1d(7, 4, 3, dilation=2, padding="same"), sequences, 0),
    "conv3d": (
        lambda: Block(lambda s, x: s.a(x[:, None]), a=nn.Conv3d(1, 2, 2, padding=1)),
        images,
        0,
    ),
    "channels-last": (channels_last, images, 0),
    "pixel-wise": (pixel_wise, images, 0),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 6, 3, stride=2, output_padding=1, groups=3),
        images,
        0,
    ),
    "transposed1d": (lambda: nn.ConvTranspose1d(7, 5, 4, stride=3, padding=1), sequences, 0),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=2), nn.LayerNorm(4), nn.Linear(4, 2)),
        tokens,
        0,
    ),
    "embedding-by-frequency": (
        lambda: nn.Embedding(9, 4, scale_grad_by_freq=True),
        tokens,
        1,
    ),
    "bag": (lambda: nn.EmbeddingBag(9, 4), tokens, 1),
    "layer-norm-2d": (lambda: nn.LayerNorm((7, 4)), sequences, 0),
    "group-norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), images, 0),
    "instance-norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)),
        images,
        0,
    ),
    "batch-norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.0), nn.Tanh(), nn.Conv2d(4, 2, 3)
        ),
        images,
        2,
    ),
    "rms-norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.PReLU(7)),
        sequences,
        0,
    ),
    "attention": (attention(self_attention, batch_first=True), sequences, 0),
    "attention-time-first": (attention(time_first), sequences, 0),
    "attention-memory": (
        attention(lambda s, x: s.m(x, 2 * x, 2 * x)[0] + s.m(x, x, 3 * x)[0], batch_first=True),
        sequences,
        0,
    ),
    "attention-kv": (
        attention(lambda s, x: s.m(x, x[..., :3], x[..., 1:])[0], batch_first=True, kdim=3, vdim=3),
        sequences,
        0,
    ),
    "attention-bias-kv": (
        attention(self_attention, batch_first=True, add_bias_kv=True),
        sequences,
        2,
    ),
    "transformer": (transformer, sequences, 0),
    "gru": (lambda: Block(lambda s, x: s.m(x)[0], m=nn.GRU(4, 3, batch_first=True)), sequences, 0),
    "lstm": (
        lambda: Block(lambda s, x: s.m(x)[0], m=nn.LSTM(4, 3, 2, batch_first=True)),
        sequences,
        0,
    ),
    "positions": (
        lambda: Block(
            lambda s, x: s.h(x + s.e(torch.arange(7)) - s.p[:, 1:8]) * s.g,
            e=nn.Embedding(9, 4),
            p=bare(1, 9, 4),
            g=bare(3),
            h=nn.Linear(4, 3),
        ),
        sequences,
        0,
    ),
    "class-token": (
        lambda: Block(
            lambda s, x: s.h(torch.cat([s.c.expand(len(x), -1, -1), x], 1)),
            c=bare(1, 1, 4),
            h=transformer(),
        ),
        sequences,
        0,
    ),
    "bare": (
        lambda: Block(lambda s, x: s.k * torch.tanh(x) @ s.w, k=bare(), w=bare(4, 3)),
        vectors,
        0,
    ),
    "tied": (
        lambda: Block(lambda s, x: torch.tanh(s.e(x)) @ s.e.weight.T, e=nn.Embedding(9, 4)),
        tokens,
        0,
    ),
    "reused": (
        lambda: Block(
            lambda s, x: s.a(torch.tanh(s.a(x))) + F.linear(x, s.a.weight), a=nn.Linear(4, 4)
        ),
        vectors,
        0,
    ),
    "weight-norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        vectors,
        2,
    ),
    "bilinear": (
        lambda: Block(lambda s, x: s.a(x, x), a=nn.Bilinear(4, 4, 3)),
        vectors,
        1,
    ),
    "weight-first": (lambda: Block(lambda s, x: (s.w @ x.T).T, w=bare(3, 4)), vectors, 1),
    "unused": (
        lambda: Block(lambda s, x: s.a(x), a=nn.Linear(4, 3), b=nn.Linear(2, 2)),
        vectors,
        0,
    ),
}


def losses_of(model, x):
    """Return one loss an example, which tells every output element from every other."""
    out = model(x)
    return (torch.sin(out).flatten(1) * torch.arange(1, out[0].numel() + 1)).sum(1)


def rows_of(losses, parameters):
    """Return each loss's gradient as one row, by plain backwards."""
    found = []
    for loss in losses:
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        pairs = zip(gradients, parameters.values(), strict=True)
        found.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        )
    return torch.stack(found)


def by_name(vector, parameters):
    parts = torch.split(vector, [p.numel() for p in parameters.values()])
    return {n: part.view_as(p) for (n, p), part in zip(parameters.items(), parts, strict=True)}


def complete(engine):
    return sum(path.startswith("complete") for path in engine.paths.values())


def equal(found, expected):
    size = expected.norm() + 1e-300
    return bool((found - expected).norm() <= 1e-10 * size)


def check(model, x, y, engines, budget=1 << 30):
    """Compare everything that the engine gives with plain backwards."""
    parameters = dict(model.named_parameters())
    weights = torch.rand(len(x), dtype=torch.float64)
    model.train()
    r = rows_of(losses_of(model, x) * weights, parameters)
    train = engines[0].of_batch(parameters, lambda: losses_of(model, x), weights, budget=budget)
    scale = {n: 0.5 + k for k, n in enumerate(parameters)}
    each = torch.cat([torch.full((p.numel(),), scale[n]) for n, p in parameters.items()]).double()
    v = torch.randn(2, r.shape[1], dtype=torch.float64)
    directions = [by_name(one, parameters) for one in v]
    assert equal(products.project(train, directions), v @ r.T)
    squares = by_name(torch.rand(r.shape[1], dtype=torch.float64), parameters)
    flat = torch.cat([s.flatten() for s in squares.values()])
    assert equal(products.squared_norms(train, set(parameters)), r.square().sum(1))
    numbers = dict.fromkeys(parameters, 2.5)
    assert equal(products.weighted_squares(train, numbers), 2.5 * r.square().sum(1))
    weighted = {n: s.flatten() for n, s in squares.items()}
    assert equal(products.weighted_squares(train, weighted), r.square() @ flat)
    total = by_name(r.sum(0), parameters)
    assert all((g - total[n]).norm() <= 1e-10 * r.norm() for n, g in train.total.items())
    for name in train.pieces:
        vector = torch.cat([d[name].flatten()[None] for d in directions])
        mine = torch.stack([by_name(row, parameters)[name].flatten() for row in r])
        assert equal(products.with_vectors(train.pieces[name], vector), mine @ vector.T), name
        chosen = torch.tensor([len(x) - 1, 0])
        assert equal(train.rows(name, chosen), mine[chosen]), name
    model.eval()
    q = torch.cat([rows_of(losses_of(model, y[i : i + 1]), parameters) for i in range(len(y))])
    test = engines[1].of_independent(
        parameters, lambda: losses_of(model, y), lambda i: losses_of(model, y[i : i + 1])
    )
    model.train()
    assert equal(products.inner(train, test, scale), (r * each) @ q.T)
    assert equal(products.inner(test, train, scale), (q * each) @ r.T)
    assert equal(products.inner(test, test, scale), (q * each) @ q.T)


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


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (5, 40)])
@pytest.mark.parametrize(("left", "right"), [(1, 1), (1, 3), (4, 4), (60, 50)])
@pytest.mark.parametrize(("d", "p"), [(3, 2), (2, 7), (3, 3)])
def test_both_ways_of_outer_products(n, m, left, right, d, p):
    torch.manual_seed(n + m)
    a = Outer(torch.randn(n, left, d).double(), torch.randn(n, left, p).double(), 0, p)
    b = Outer(torch.randn(m, right, d).double(), torch.randn(m, right, p).double(), 0, p)
    g = torch.einsum("ntp,ntd->npd", a.deltas, a.inputs)
    h = torch.einsum("ntp,ntd->npd", b.deltas, b.inputs)
    expected = torch.einsum("npd,mpd->nm", g, h)
    assert torch.allclose(ghost(a, b), expected, rtol=1e-11)
    for room in (1 << 30, 96 * min(d, p) * (n + m)):  # all at once; one of the longer side
        with temporaries(room):
            assert torch.allclose(formed(a, b), expected, rtol=1e-11)
    rows = [Rows(x.flatten(1), (p, d)) for x in (g, h)]
    assert torch.allclose(products.inner_pieces([a], [rows[1]]), expected, rtol=1e-11)
    assert torch.allclose(products.inner_pieces([rows[0]], [b]), expected, rtol=1e-11)
    assert torch.allclose(a.squared_norms(), g.square().sum((1, 2)), rtol=1e-11)


class Multiplications(TorchFunctionMode):
    """Counts those of matrix products."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("matmul", "__matmul__", "bmm"):
            self.total += args[0].numel() * args[1].shape[-1]
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("n", "m", "rows", "columns", "d", "p", "cheaper"),
    [
        *((5, 7, 1, 1, d, p, "ghost") for d, p in ((8, 8), (2, 90))),
        *((4, 3, rows, rows, 64, 64, name) for rows, name in ((2, "ghost"), (40, "formed"))),
        *((n, 30, 12, 12, 64, 64, name) for n, name in ((1, "ghost"), (30, "formed"))),
        *((6, 6, 1, 9, 40, p, name) for p, name in ((40, "ghost"), (2, "formed"))),
    ],
)
def test_the_way_of_fewer_operations_is_taken(monkeypatch, n, m, rows, columns, d, p, cheaper):
    """Both ways are counted as they run."""
    left = Outer(torch.randn(n, rows, d), torch.randn(n, rows, p), 0, p)
    right = Outer(torch.randn(m, columns, d), torch.randn(m, columns, p), 0, p)
    operations = {}
    for way in (ghost, formed):
        with Multiplications() as counted:
            way(left, right)
        operations[way.__name__] = counted.total
    assert min(operations, key=operations.get) == cheaper, operations
    taken = []
    for name in operations:
        monkeypatch.setattr(products, name, lambda *_, name=name: taken.append(name))
    products.inner_pieces([left], [right])
    assert taken == [cheaper]


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
        monkeypatch.setattr("replay.gradients.engine.is_steady", lambda found, plan: True)
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


def swapped(piece):
    return piece.select(torch.arange(piece.count - 1, -1, -1))


def larger(piece):
    return Rows(1.03 * piece.dense(slice(0, 3)), piece.shape)


def off_by_a_hundredth(piece):
    """Of one example."""
    rows = piece.dense(slice(0, 3)).clone()
    rows[-1] *= 1.01
    return Rows(rows, piece.shape)


@pytest.mark.parametrize(
    ("kind", "wrong", "why"),
    [
        *((kind, swapped, "not its own gradient") for kind in ("float64", "float32", "autocast")),
        *((kind, larger, "do not add up") for kind in ("float64", "float32", "autocast")),
        *((kind, off_by_a_hundredth, "do not add up") for kind in ("float64", "float32")),
    ],
)
def test_wrong_readings_are_found(monkeypatch, kind, wrong, why):
    """What an operation's reading says is compared with plain backward passes."""
    right = uses._KNOWN["AddmmBackward0"]

    def read(*arguments):
        return [
            replace(use, build=lambda *a, use=use: wrong(use.build(*a)))
            for use in right(*arguments)
        ]

    monkeypatch.setitem(uses._KNOWN, "AddmmBackward0", read)
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


def test_half_precision_is_multiplied_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    model, x = model.to(torch.bfloat16), vectors(6).bfloat16()
    parameters = dict(model.named_parameters())
    engine = Engine()
    found = engine.of_independent(
        parameters, lambda: losses_of(model, x), lambda i: losses_of(model, x[i : i + 1])
    )
    assert not complete(engine)
    tensors = [t for pieces in found.pieces.values() for piece in pieces for t in piece.tensors]
    assert {t.dtype for t in tensors} == {torch.float32}
    r = rows_of(losses_of(model, x), parameters).double()
    gram = products.inner(found, found, dict.fromkeys(parameters, 1.0))
    assert (gram - r @ r.T).norm() <= 3e-2 * (r @ r.T).norm()


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
    whole = proof.is_rounding
    monkeypatch.setattr(
        "replay.gradients.engine.is_rounding", lambda *a: asked.append(a) or whole(*a)
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(60):
        x = torch.randn(12, 16)
        losses_of(model, x).mean().backward()
        sgd.step()
        engine.of_batch(parameters, lambda x=x: losses_of(model, x), torch.ones(12), budget=1 << 20)
    assert asked
