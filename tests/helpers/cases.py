"""Small float64 runs, one for each thing that a model or a loop can do to the mathematics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from replay import Task
from tracer import TracingSGD


def squared(model, batch):
    """Return each example's squared error, halved."""
    x, y = batch
    return 0.5 * (model(x).squeeze(-1) - y).square()


def cross_entropy(model, batch):
    """Return each example's cross-entropy."""
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def next_token(model, batch):
    """Return each sequence's mean cross-entropy of its next tokens."""
    tokens, targets = batch
    logits = model(tokens)  # (b, T, V)
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


class Attention(nn.Module):
    """A transformer block with embedding, LayerNorm and a head tied to the embedding."""

    def __init__(self, vocabulary=7, width=6, activation=torch.tanh):
        super().__init__()
        self.activation = activation
        self.embed = nn.Embedding(vocabulary, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        x = x + self.out(scores.masked_fill(~mask, -1e9).softmax(-1) @ v)
        x = x + self.down(self.activation(self.up(self.second(x))))
        return self.head(x)


class Bare(nn.Module):
    """A layer, a bare parameter and a scale."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)
        self.table = nn.Parameter(torch.randn(5, 3))
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return self.scale * torch.tanh(self.layer(x)) @ self.table


class Twice(nn.Module):
    """One module called twice, its weight used by hand a third time."""

    def __init__(self, by_hand=False):
        super().__init__()
        self.inside, self.outside = nn.Linear(4, 4), nn.Linear(4, 3)
        self.by_hand = by_hand

    def forward(self, x):
        x = torch.tanh(self.inside(torch.tanh(self.inside(x))))
        if self.by_hand:
            x = x + F.linear(x, self.inside.weight)
        return self.outside(x)


class SequenceFirst(nn.Module):
    """Linear layers that see (T, b, ·), then (b T, ·)."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = x.view(len(x), 2, 2).transpose(0, 1)  # (T, b, 2)
        x = torch.tanh(self.first(x)).transpose(0, 1)
        x = torch.tanh(self.second(x.reshape(-1, 4))).view(-1, 2, 4)
        return self.third(x).sum(1)


class Unused(nn.Module):
    """A layer that the forward pass does not reach, a frozen one, and one that it does."""

    def __init__(self, frozen):
        super().__init__()
        self.used, self.idle, self.top = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
        if frozen:
            self.used.requires_grad_(False)

    def forward(self, x):
        return self.top(torch.tanh(self.used(x)))


def convolutional():
    """Convolution, GroupNorm, grouped convolution, pooling."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def normalised(activation=nn.Tanh):
    """BatchNorm and dropout between Linear layers."""
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        activation(),
        nn.Dropout(0.4),
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(5, 3),
    )


def mlp(activation=nn.Tanh):
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)
    )


EPOCH = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))  # a short last batch


@dataclass(frozen=True)
class Case:
    """A model, data and the batches of a run.

    Attributes:
        batches: IDs of each step; a step of lists of IDs is one of micro-batches.
        groups: Makes the optimizer's parameter groups from a model; default: one.
        options: Settings of ``torch.optim.SGD``.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable = cross_entropy
    kind: str = "classes"
    width: int = 4
    batches: Sequence = EPOCH + EPOCH
    reduction: str = "mean"
    groups: Callable | None = None
    options: dict = field(default_factory=lambda: {"lr": 0.3})
    penalty: Callable | None = None
    dtype: torch.dtype = torch.float64

    def task(self) -> Task:
        """Return the task; its data are the same each time."""
        generator = torch.Generator().manual_seed(5)
        size = 14
        if self.kind == "tokens":
            x = torch.randint(0, 7, (size, self.width + 1), generator=generator)
            data = [(row[:-1], row[1:]) for row in x]
        else:
            x = torch.randn(size, self.width, generator=generator, dtype=self.dtype)
            y = (
                torch.randn(size, generator=generator, dtype=self.dtype)
                if self.kind == "real"
                else torch.randint(0, 3, (size,), generator=generator)
            )
            data = list(zip(x, y, strict=True))

        def model():
            torch.manual_seed(0)
            return self.build().to(self.dtype)

        train, test = dict(enumerate(data[:10])), dict(enumerate(data[10:]))
        return Task(model, self.loss, train, test, penalty=self.penalty)

    def trace(self, path: Path, after_step=None, **how) -> Task:
        """Train with tracing; return the task."""
        task = self.task()
        torch.manual_seed(1)
        model = task.model()
        groups = self.groups(model) if self.groups else model.parameters()
        inner = torch.optim.SGD(groups, **self.options)
        with TracingSGD(inner, model, path, reduction=self.reduction, **how) as optimizer:
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
            for t, ids in enumerate(self.batches):
                optimizer.epoch = t // 3
                optimizer.zero_grad()
                self._step(task, model, optimizer, ids)
                scheduler.step()
                if after_step is not None:
                    after_step(optimizer)
        return task

    def _step(self, task, model, optimizer, ids):
        parts = ids if isinstance(ids[0], (list, tuple)) else [ids]
        for part in parts:
            batch = task.collate([task.train[i] for i in part])
            losses = task.loss(model, batch)
            loss = losses.mean() / len(parts) if self.reduction == "mean" else losses.sum()
            if task.penalty is not None:
                loss = loss + task.penalty(model) / len(parts)
            loss.backward()
            if len(parts) > 1:
                optimizer.observe(part)
        if len(parts) > 1:
            optimizer.step()
        else:
            optimizer.step(batch_ids=ids)


def two_groups(model):
    """Weights with decay, biases with another learning rate and none."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if "weight" in n], "weight_decay": 0.1, "lr": 0.2},
        {"params": [p for n, p in named if "weight" not in n], "lr": 0.4},
    ]


def l1(model):
    """A smooth penalty."""
    return 0.01 * sum(p.pow(4).sum() for p in model.parameters())


CASES = [
    Case("linear-regression", lambda: nn.Linear(4, 1), squared, "real", options={"lr": 0.1}),
    Case("linear-regression-sum", lambda: nn.Linear(4, 1), squared, "real", reduction="sum",
         options={"lr": 0.05}),
    Case("mlp", mlp),
    Case("mlp-batch-1", mlp, batches=((3,), (1,), (3,))),
    Case("mlp-id-twice", mlp, batches=((0, 1, 0, 2), (5, 5), (0, 1))),
    Case("mlp-two-groups-decay", mlp, groups=two_groups),
    Case("mlp-decay-penalty", mlp, options={"lr": 0.3, "weight_decay": 0.05}, penalty=l1),
    Case("mlp-accumulation", mlp, batches=(((0, 1, 2), (3,)), ((4, 5), (4, 6)), (7, 8, 9))),
    Case("mlp-lr-0", mlp, options={"lr": 0.0}),
    Case("convolutional-groupnorm", convolutional, width=16),
    Case("transformer-tied", Attention, next_token, "tokens", width=5, options={"lr": 0.05}),
    Case("bare-parameter", Bare, options={"lr": 0.1}),
    Case("module-twice", Twice),
    Case("module-twice-and-by-hand", lambda: Twice(by_hand=True)),
    Case("sequence-first", SequenceFirst),
    Case("frozen-layer", lambda: Unused(frozen=True)),
    Case("unused-layer", lambda: Unused(frozen=False), options={"lr": 0.3, "weight_decay": 0.1}),
    Case("batchnorm-dropout", normalised),
    Case("batchnorm-dropout-accumulation", normalised,
         batches=(((0, 1, 2), (3, 4)), ((5, 6, 7), (8, 9)), (0, 2, 9))),
]  # fmt: skip
