"""A training loop that can be taken again with other weights of some examples, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from replay import Task
from tests.helpers.sparse import MODELS, OPTIMIZERS
from tracer import TracingOptimizer

EXAMPLES, TESTS = 24, 4


def data():
    """Return inputs and labels in float64; the last ones are test examples."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(EXAMPLES + TESTS, 12, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (EXAMPLES + TESTS,), generator=generator)


def losses(model, batch):
    """Return each example's cross entropy."""
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@dataclass
class Loop:
    """A run in float64: model, optimizer, batches of a size, clipping, accumulation, schedule.

    Gradients are clipped together by a norm, each parameter's by itself, or by value.
    """

    model: str = "mlp"
    rule: str = "sgd"
    steps: int = 6
    size: int = 5
    parts: int = 1
    limit: float | None = None
    kind: float | str = 2.0
    inside: bool = True
    reduction: str = "mean"
    built: list = field(default_factory=list)

    def task(self):
        """Return its task."""
        x, y = data()
        both = list(zip(x, y, strict=True))
        model = lambda: MODELS[self.model]().double()  # noqa: E731
        return Task(model, losses, train=both[:EXAMPLES], test=both[EXAMPLES:])

    def train(self, path=None, *, scale=(), renormalise=False, along=1, **how):
        """Train, traced or with other weights; return test losses every so many steps."""
        torch.manual_seed(3)
        scale, (x, y) = dict(scale), data()
        net = MODELS[self.model]().double()
        inner = OPTIMIZERS[self.rule](list(net.parameters()))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(inner, 0.9)
        optimizer = inner
        if path is not None:
            optimizer = TracingOptimizer(inner, net, path, reduction=self.reduction, **how)
        values = []
        for t in range(self.steps):
            optimizer.zero_grad()
            for _ in range(self.parts):
                ids = torch.randperm(EXAMPLES)[: self.size]
                if path is not None:
                    optimizer.observe(ids)
                factors = torch.tensor([float(scale.get(i, 1.0)) for i in ids.tolist()])
                left = float(factors.sum()) if renormalise else len(ids)
                each = losses(net, (x[ids], y[ids]))
                total = (each * factors).sum() if scale else each.sum()
                mean = total / (left or 1) if scale else each.mean()
                (total if self.reduction == "sum" else mean / self.parts).backward()
            self._clip(net, optimizer, path)
            optimizer.step()
            scheduler.step()
            if (t + 1) % along == 0 or t + 1 == self.steps:
                values.append(self._values(net))
        if path is not None:
            optimizer.close()
        self.built.append(net)
        return torch.stack(values).numpy()

    def _clip(self, net, optimizer, path):
        if self.limit is None:
            return
        if self.kind == "value":
            nn.utils.clip_grad_value_(net.parameters(), self.limit)
        elif self.kind == "each":
            for parameter in net.parameters():
                nn.utils.clip_grad_norm_([parameter], self.limit)
        elif path is not None and self.inside:
            optimizer.clip_grad_norm_(self.limit, self.kind)
        else:
            nn.utils.clip_grad_norm_(net.parameters(), self.limit, self.kind)

    @staticmethod
    def _values(net):
        x, y = data()
        with torch.random.fork_rng(), torch.no_grad():
            found = losses(net.eval(), (x[EXAMPLES:], y[EXAMPLES:]))
        net.train()
        return found
