"""Layers of every kind, and a check of their gradients against plain backwards."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.forms import products


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
    for name, form in train.forms.items():
        vector = torch.cat([d[name].flatten()[None] for d in directions])
        mine = torch.stack([by_name(row, parameters)[name].flatten() for row in r])
        assert equal(form.with_vectors(vector), mine @ vector.T), name
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
