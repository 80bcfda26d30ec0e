"""What a replay takes, as a sum of four terms fitted to measurements; see ``scale.py model``.

    seconds of a step = k0 + (k1 b + k2 m + k3 b m) P

with b examples in a batch, m test examples and P parameters: a step itself, the training side's
passes, the test side's passes, and the products of both. What a question begins with is left out:
a step's seconds are the processor time of ten steps less that of two, over eight.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tracer import TracingOptimizer

WIDTHS, BATCHES, TESTS, TOKENS = (48, 96, 144), (8, 32), (16, 64), 32
TERMS = ("a step", "b P", "m P", "b m P")
ASKED = {"T": 1e5, "b": 1e3, "m": 1e4, "P": 1e8}
GPUS, SPEED = 64, 2e13  # operations a second of each, in products of matrices
RULES = {"SGD": partial(torch.optim.SGD, lr=0.05), "AdamW": partial(torch.optim.AdamW, lr=1e-3)}


class Encoder(nn.Module):
    """Two layers, vocabulary 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
        self.embedding = nn.Embedding(64, width)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits, ``(b, 64, T)``."""
        return self.head(self.layers(self.embedding(tokens))).transpose(1, 2)


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of each sequence's tokens."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none").mean(1)


def sequences(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return inputs and what is to be predicted."""
    draw = torch.Generator().manual_seed(count)
    return [tuple(torch.randint(0, 64, (2, TOKENS), generator=draw)) for _ in range(count)]


def seconds(path: Path, task: Task, rule: str, batch: int, tests: int) -> float:
    """Return what a step of a replay takes, of a run that is traced first."""
    torch.manual_seed(0)
    model = task.model()
    inner = RULES[rule](model.parameters())
    with TracingOptimizer(inner, model, path, snapshot_every=1) as optimizer:
        for t in range(10):
            ids = [(batch * t + k) % len(task.train) for k in range(batch)]
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    run, took = Replay(path, task, threads=1), []
    for steps in ("0:2", "0:2", "0:10"):  # the first one proves what the others rely on
        began = time.process_time()
        run.influence(range(tests), methods="tracin", steps=steps, progress=False)
        took.append(time.process_time() - began)
    return (took[2] - took[1]) / 8


def measured(rule: str) -> Iterator[tuple[int, int, int, float]]:
    """Yield b, m, P and seconds."""
    for width, batch, tests in product(WIDTHS, BATCHES, TESTS):
        task = Task(partial(Encoder, width), loss, sequences(64), sequences(tests))
        size = sum(p.numel() for p in task.model().parameters())
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            found = seconds(Path(folder) / "run.h5", task, rule, batch, tests)
        yield batch, tests, size, found


def terms(b: float, m: float, P: float) -> list[float]:
    """Return what the four constants are multiplied with."""
    return [1.0, b * P, m * P, b * m * P]


def speed() -> float:
    """Return operations a second of one core, in products of matrices."""
    a = torch.randn(1024, 1024)
    took = []
    for _ in range(8):
        began = time.process_time()
        a @ a
        took.append(time.process_time() - began)
    return 2 * 1024**3 / float(np.median(took))


def fitted(rule: str) -> None:
    """Measure, fit by least squares of relative errors, print; no constant is negative."""
    rows = list(measured(rule))
    table = np.array([terms(b, m, size) for b, m, size, _ in rows])
    took = np.array([row[3] for row in rows])
    constants, _ = nnls(table / took[:, None], np.ones(len(took)))
    off = table @ constants / took - 1
    print(f"\n{rule}: " + ", ".join(f"{k:.2e} {n}" for k, n in zip(constants, TERMS, strict=True)))
    print("| b | m | P | ms a step | by the model |\n|---|---|---|---|---|")
    for (b, m, size, found), gap in zip(rows, off, strict=True):
        print(f"| {b} | {m} | {size:,} | {1000 * found:.1f} | {100 * gap:+.0f} % |")
    print(f"root mean square {100 * np.sqrt((off**2).mean()):.0f} %")
    parts = np.array(terms(ASKED["b"], ASKED["m"], ASKED["P"])) * constants * ASKED["T"]
    core = speed()
    hours = parts.sum() / 3600
    there = hours * core / (GPUS * SPEED)
    shares = ", ".join(
        f"{100 * p / parts.sum():.0f} % {n}" for p, n in zip(parts, TERMS, strict=True)
    )
    print(f"1e6 x 1e4 examples, 1e5 steps of 1,000, 1e8 parameters: {hours:.2e} hours of this core")
    print(f"({core:.1e} operations a second), {there:.0f} hours of {GPUS} GPUs at {SPEED:.0e}")
    print(shares)


def model() -> None:
    """Fit the model for SGD and for AdamW."""
    torch.set_num_threads(1)
    for rule in RULES:
        fitted(rule)
