"""Small float64 runs that are taken again with the losses of examples scaled, by plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from replay import Task
from tests.helpers.cases import Attention, convolutional, cross_entropy, mlp, next_token, normalised
from tests.helpers.rules import BY_NAME, Rule
from tracer import TracingOptimizer

TRAIN, TEST, STEPS = 8, 2, 4


class Fused(Attention):
    """The same block with torch's own attention, whose fast kernels have one derivative."""

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (part[:, None] for part in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        x = x + self.down(torch.tanh(self.up(self.second(x))))
        return self.head(x)


def l1(model):
    """A smooth penalty."""
    return 0.01 * sum(p.pow(4).sum() for p in model.parameters())


@dataclass(frozen=True)
class Rerun:
    """A training run, as a function of what each example's loss is multiplied by.

    Attributes:
        rule: The optimizer.
        build: The model.
        clip: Norm to which gradients are clipped: by the wrapper in odd steps, else by torch.
        norm: Which norm.
        parts: Sizes of a step's micro-batches.
    """

    name: str
    rule: Rule
    build: Callable[[], nn.Module] = mlp
    loss: Callable = cross_entropy
    width: int = 4
    clip: float | None = None
    norm: float = 2.0
    parts: tuple[int, ...] = (3,)
    scheduled: bool = True
    penalty: Callable | None = None
    groups: Callable = field(default=lambda model: model.parameters())

    def task(self) -> Task:
        """Return the task; its data are the same each time."""
        generator = torch.Generator().manual_seed(5)
        size = TRAIN + TEST
        if self.loss is next_token:
            x = torch.randint(0, 7, (size, self.width + 1), generator=generator)
            data = [(row[:-1], row[1:]) for row in x]
        else:
            x = torch.randn(size, self.width, generator=generator, dtype=torch.float64)
            y = torch.randint(0, 3, (size,), generator=generator)
            data = list(zip(x, y, strict=True))

        def model():
            torch.manual_seed(0)
            return self.build().double()

        return Task(model, self.loss, data[:TRAIN], data[TRAIN:], penalty=self.penalty)

    def trained(self, scales, path: Path | None = None, **tracing) -> nn.Module:
        """Train; return the model.

        Args:
            scales: Of each example's loss, ``(TRAIN,)``.
            path: Where the run is logged, if it is.
        """
        task = self.task()
        model, k = task.model(), len(self.parts)
        optimizer = self.rule.kind(self.groups(model), **self.rule.options)
        if path is not None:
            optimizer = TracingOptimizer(optimizer, model, path, **tracing)
        torch.manual_seed(3)
        order = np.random.default_rng(0)
        for t in range(STEPS):
            for group in optimizer.param_groups if self.scheduled else ():
                group["lr"] = self.rule.options["lr"] * (1 + 0.5 * np.sin(t))
            optimizer.zero_grad()
            for size in self.parts:
                ids = order.choice(TRAIN, size).tolist()  # some of them twice
                losses = task.loss(model, task.collate([task.train[i] for i in ids]))
                objective = (losses * scales[ids]).mean()
                if task.penalty is not None:
                    objective = objective + task.penalty(model)
                (objective / k).backward()
                if path is not None:
                    optimizer.observe(ids)
            recorded = path is not None and t % 2
            if self.clip and recorded:
                optimizer.clip_grad_norm_(self.clip, self.norm)
            elif self.clip:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip, self.norm)
            optimizer.step()
        if path is not None:
            optimizer.close()
        return model

    def values(self, scales) -> np.ndarray:
        """Return the test losses after training, ``(TEST,)``."""
        model, task = self.trained(scales).eval(), self.task()
        with torch.no_grad():
            return task.loss(model, task.collate([task.test[j] for j in range(TEST)])).numpy()

    def differences(self, direction, h: float = 4e-4) -> np.ndarray:
        """Return the derivative of the test losses by scales along a direction, ``(TEST,)``.

        Central differences, of fourth order by Richardson's extrapolation.
        """

        def difference(step):
            one = torch.ones(TRAIN, dtype=torch.float64)
            ends = [self.values(one + sign * step * direction) for sign in (1, -1)]
            return (ends[0] - ends[1]) / (2 * step)

        return (4 * difference(h) - difference(2 * h)) / 3


def smooth(kind, **options):
    """Return a rule whose second moments are not near zero, where differences mean nothing."""
    return Rule("", kind, options)


O = torch.optim  # noqa: E741
SGD, MOMENTUM, NESTEROV = BY_NAME["sgd"], BY_NAME["heavy-ball"], BY_NAME["nesterov"]
two = (3, 2)
RUNS = [
    Rerun("sgd-mlp", SGD),
    Rerun("sgd-clip-accumulation", SGD, clip=0.3, parts=two),
    Rerun("heavy-ball-penalty-clip", MOMENTUM, clip=0.3, penalty=l1, parts=two),
    Rerun("dampened-maximize", Rule("", O.SGD, {"lr": 0.02, "momentum": 0.8, "dampening": 0.3,
          "weight_decay": 0.1, "maximize": True})),
    Rerun("nesterov-decay-conv", NESTEROV, convolutional, width=16, clip=0.3, parts=two),
    Rerun("adam-decay-clip", smooth(O.Adam, lr=0.02, weight_decay=0.1, eps=1e-3), clip=0.3,
          parts=two),
    Rerun("adamw-attention", smooth(O.AdamW, lr=0.02, weight_decay=0.2, eps=1e-2), Fused,
          next_token, width=5, clip=0.3, parts=two),
    Rerun("sgd-clip-largest", SGD, clip=0.1, norm=float("inf")),
    Rerun("amsgrad", smooth(O.AdamW, lr=0.02, amsgrad=True, betas=(0.7, 0.6), eps=1e-3)),
    Rerun("rmsprop-batchnorm", smooth(O.RMSprop, lr=0.01, eps=1e-2), normalised, parts=(4, 4),
          clip=0.5),
    Rerun("rmsprop-centered", smooth(O.RMSprop, lr=0.01, momentum=0.8, centered=True, eps=1e-2)),
    Rerun("adagrad-conv", smooth(O.Adagrad, lr=0.1, lr_decay=0.1, weight_decay=0.1, eps=1e-2),
          convolutional, width=16, clip=0.3, parts=two),
    Rerun("heavy-ball-batchnorm", MOMENTUM, normalised, parts=(4, 4), clip=0.5),
]  # fmt: skip
