"""Layers of drawn shapes and options against one backward an example, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replay.gradients.engine import Engine
from tests.helpers.layers import Block, check, complete

few = settings(derandomize=True, deadline=None, max_examples=15)
sizes = st.integers(1, 4)
counts = st.tuples(st.integers(1, 4), st.integers(1, 3))  # training examples, test examples


def numbers(n, shape):
    return torch.randn(n, *shape, dtype=torch.float64)


def compared(model, count, shape, make=numbers, uncovered=0):
    """Compare a model on drawn examples; no parameter may take the complete way unexpectedly."""
    engines = Engine(), Engine()
    check(model.double(), *(make(n, shape) for n in count), engines)
    for engine in engines:
        assert complete(engine) == uncovered, engine.paths


@few
@given(
    counts,
    st.lists(sizes, max_size=2),
    st.lists(st.integers(2, 4), min_size=1, max_size=2),
    st.booleans(),
    st.booleans(),
)
def test_layer_norms(count, leading, shape, bias, root):
    torch.manual_seed(0)
    norm = nn.RMSNorm(shape) if root else nn.LayerNorm(shape, bias=bias)
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), norm)
    compared(model, count, [*leading, *shape])


@few
@given(counts, sizes, sizes, st.lists(st.integers(2, 4), max_size=3))
def test_group_norms(count, groups, each, shape):
    torch.manual_seed(0)
    shape = [*shape, 3] if each == 1 else shape  # one value is normalised to nothing
    compared(nn.GroupNorm(groups, groups * each), count, [groups * each, *shape])


@pytest.mark.parametrize("kind", ["InstanceNorm", "BatchNorm"])
@few
@given(counts, st.integers(1, 3), sizes, st.integers(2, 4), st.booleans())
def test_norms_of_channels(kind, count, dims, channels, side, running):
    """By statistics of what they are given, or by those that training left."""
    torch.manual_seed(0)
    norm = getattr(nn, f"{kind}{dims}d")
    running |= kind == "BatchNorm"  # without them examples are not independent in eval mode
    model = norm(channels, affine=True, track_running_stats=running)
    nn.init.normal_(model.weight)
    compared(model, count, [channels, *(side,) * dims])


@few
@given(
    counts,
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_attention(count, heads, width, length, bias, batch_first, need_weights):
    torch.manual_seed(0)

    def forward(self, x):
        x = x if batch_first else x.transpose(0, 1)
        y = self.m(x, x, torch.tanh(x), need_weights=need_weights)[0]
        return y if batch_first else y.transpose(0, 1)

    d = heads * width
    layer = nn.MultiheadAttention(d, heads, bias=bias, batch_first=batch_first)
    compared(Block(forward, m=layer), count, [length, d])


@few
@given(
    counts,
    st.sampled_from([nn.GRU, nn.LSTM, nn.RNN]),
    st.tuples(sizes, sizes, st.integers(1, 2)),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_recurrent_layers(count, kind, sizes, length, bias, both_ways, batch_first):
    torch.manual_seed(0)

    def forward(self, x):
        y = self.m(x if batch_first else x.transpose(0, 1))[0]
        return y if batch_first else y.transpose(0, 1)

    layer = kind(*sizes, bias=bias, bidirectional=both_ways, batch_first=batch_first)
    compared(Block(forward, m=layer), count, [length, sizes[0]])


@few
@given(
    counts,
    st.sampled_from(["sum", "mean", "max"]),
    st.integers(1, 4),
    st.integers(1, 6),
    st.none() | st.just(1),
)
def test_bags(count, mode, width, length, padding):
    torch.manual_seed(0)
    model = nn.EmbeddingBag(5, width, mode=mode, padding_idx=padding)
    tokens = lambda n, shape: torch.randint(0, 5, (n, *shape))  # noqa: E731
    compared(model, count, [length], tokens, uncovered=1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@few
@given(
    counts,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 2) | st.just("same"),
)
def test_padding_modes(mode, count, dims, kernel, groups, stride, padding):
    torch.manual_seed(0)
    stride = 1 if padding == "same" else stride
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = kind(2 * groups, 2 * groups, kernel, stride, padding, groups=groups, padding_mode=mode)
    compared(model, count, [2 * groups, *(5 - dims // 3,) * dims])
