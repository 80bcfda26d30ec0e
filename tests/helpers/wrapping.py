"""A model, its optimizer and its data for tests of the wrapper."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def backward(model, ids, scale=1.0):
    ids = list(ids)
    loss = F.cross_entropy(model(X[ids]), Y[ids])
    (loss * scale).backward()
    return loss
