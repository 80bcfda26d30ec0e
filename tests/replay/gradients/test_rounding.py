"""What is nothing but rounding is not mistaken for a wrong gradient, nor hides one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.engine import Engine
from replay.gradients.forms.dense import matrices
from replay.gradients.readers import table


class Encoder(nn.Module):
    """Attention with a layer each for queries, keys and values, as language models have it."""

    def __init__(self):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(20, 32), nn.LayerNorm(32)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = self.tokens(x)
        q, k, v = (
            layer(x).unflatten(-1, (4, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.norm(x + h)[:, 0])


def slightly_wrong(share):
    """Add a share of the magnitudes of its terms to what is read of one bias."""
    right = table.READERS["AddmmBackward0"]

    def read(arrival, graph, shape):
        def wrong(delta, arrange, reader):
            form, terms = (
                reader.read(d, arrange).dense(slice(0, 32)) for d in (delta, delta.abs())
            )
            return matrices(form + share * terms, shape)

        found = right(arrival, graph, shape)
        if arrival.name != "key.bias":
            return found
        return [replace(one, read=partial(wrong, reader=one)) for one in found]

    return read


@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_gradients_of_nothing_but_rounding(share, monkeypatch):
    """Those of key biases are, in float32; a wrong one as small as 0.1 % of its terms is found."""
    monkeypatch.setitem(table.READERS, "AddmmBackward0", slightly_wrong(share))
    torch.manual_seed(0)
    model, engine = Encoder(), Engine(audit=1000)
    parameters = dict(model.named_parameters())
    for _ in range(3):
        x, y = torch.randint(0, 20, (16, 24)), torch.arange(16) % 3

        def forward(x=x, y=y):
            return F.cross_entropy(model(x), y, reduction="none")

        engine.of_batch(parameters, forward, torch.ones(16), budget=1 << 20)
        complete = [name for name, path in engine.paths.items() if path.startswith("complete")]
        assert complete == (["key.bias"] if share else [])
