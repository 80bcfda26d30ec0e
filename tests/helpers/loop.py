"""A training loop in steps, traced or not: schedules, clipping, accumulation, hooks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tracer import TracingOptimizer


@dataclass(frozen=True)
class Loop:
    """A training loop.

    Attributes:
        scheduled: The learning rate moves.
        clip: Norm to which gradients are clipped, by the optimizer and by other means in turns.
        accumulate: Two micro-batches of unequal size.
        settle: Called with (t, optimizer, model) before a step's backward.
        hook: Called with (t, optimizer, model) between backward and step.
    """

    scheduled: bool = False
    clip: float | None = None
    accumulate: bool = False
    settle: object = None
    hook: object = None

    def step(self, t, run, model, optimizer, generator):
        """Take a step; t is negative before the log begins."""
        traced = isinstance(optimizer, TracingOptimizer)
        for group in optimizer.param_groups if self.scheduled else ():
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 + 0.5 * np.sin(t))
        if self.settle is not None:
            self.settle(t, optimizer, model)
        optimizer.zero_grad()
        parts = [
            torch.randperm(len(run.task.train), generator=generator)[: 4 - k].tolist()
            for k in range(2)
        ]
        parts = parts if self.accumulate else parts[:1]
        for part in parts:
            batch = run.task.collate([run.task.train[i] for i in part])
            objective = run.task.loss(model, batch).mean()
            if run.task.penalty is not None:
                objective = objective + run.task.penalty(model)
            (objective / len(parts)).backward()
            if traced and self.accumulate:
                optimizer.observe(part)
        self._clip(optimizer.clip_grad_norm_ if traced and t % 2 else None, model)
        if self.hook is not None:
            self.hook(t, optimizer, model)
        optimizer.step(**({"batch_ids": parts[0]} if traced and not self.accumulate else {}))

    def _clip(self, recorded, model):
        if self.clip and recorded:
            recorded(self.clip)
        elif self.clip:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
