"""What splitting momentum and AdamW costs, against the natural floor and against plain SGD.

The floor of a step is one plain forward and backward pass over the batch and the test examples
together (for AdamW one more over the batch: its denominators are found first) and the 2 b m P
floating-point operations of the products, at the rate of a matrix product measured here. One
process, one thread, candidates in turns, medians of three.

    python benchmarks/update_rules.py [mlp|resnet|gpt ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replay import Replay, Task
from tracer import TracingOptimizer

RUNS = 3
RULES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    )


def block(inputs: int, outputs: int, *, pool: bool) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9(nn.Module):
    """GroupNorm, 3 x 32 x 32, 1.65M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 32, pool=False), block(32, 64, pool=True))
        self.first = nn.Sequential(block(64, 64, pool=False), block(64, 64, pool=False))
        self.middle = nn.Sequential(block(64, 128, pool=True), block(128, 256, pool=True))
        self.second = nn.Sequential(block(256, 256, pool=False), block(256, 256, pool=False))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``(b, 10)``."""
        x = self.stem(x)
        x = self.middle(x + self.first(x))
        return self.head((x + self.second(x)).amax((2, 3)))


class Layer(nn.Module):
    """A transformer layer, width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(128), nn.LayerNorm(128)
        self.qkv, self.out = nn.Linear(128, 384), nn.Linear(128, 128)
        self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(b, T, 128)``."""
        q, k, v = self.qkv(self.one(x)).unflatten(-1, (3, 4, 32)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.two(x))))


class GPT(nn.Module):
    """Four layers, width 128, 64 tokens, vocabulary 256, 0.87M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, 128), nn.Embedding(64, 128)
        self.layers = nn.Sequential(*(Layer() for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(128), nn.Linear(128, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``(b, T, 256)``."""
        places = self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.layers(self.tokens(x) + places)))


def classes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = model(batch[0]).transpose(1, 2)
    return F.cross_entropy(logits, batch[1], reduction="none").mean(1)


@dataclass(frozen=True)
class Case:
    """A model with its data, batch size and number of steps."""

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
    example: Callable[[], tuple[Tensor, Tensor]]
    batch: int
    steps: int

    def task(self) -> Task:
        """Return the task; 100 test examples."""
        torch.manual_seed(1)
        data = [self.example() for _ in range(228)]

        def model() -> nn.Module:
            torch.manual_seed(0)
            return self.build()

        return Task(model, self.loss, data[:128], data[128:])


CASES = {
    "mlp": Case(mlp, classes, lambda: (torch.randn(784), torch.randint(10, ())), 64, 40),
    "resnet": Case(
        ResNet9, classes, lambda: (torch.randn(3, 32, 32), torch.randint(10, ())), 64, 2
    ),
    "gpt": Case(
        GPT, next_token, lambda: (torch.randint(256, (64,)), torch.randint(256, (64,))), 32, 2
    ),
}


def trace(task: Task, case: Case, rule: str, path: Path) -> None:
    model = task.model()
    with TracingOptimizer(RULES[rule](model.parameters()), model, path) as optimizer:
        for _ in range(case.steps):
            ids = torch.randperm(128)[: case.batch].tolist()
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)


def timed(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def rate() -> float:
    """Return floating-point operations a second of a large matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / min(timed(lambda: a @ b) for _ in range(20))


def passes(task: Task, examples: list[tuple[Tensor, Tensor]]) -> float:
    """Return the time of one plain forward and backward pass."""
    model, batch = task.model(), task.collate(examples)
    return timed(
        lambda: torch.autograd.grad(task.loss(model, batch).sum(), list(model.parameters()))
    )


def measure(name: str, folder: Path) -> None:
    case = CASES[name]
    task = case.task()
    size = sum(p.numel() for p in task.model().parameters())
    print(f"{name}: {size:,} parameters, batch {case.batch}", flush=True)
    for rule in RULES:
        with redirect_stderr(StringIO()):
            trace(task, case, rule, folder / f"{name}-{rule}.h5")
    for m in (1, 10, 100):
        train, test = [task.train[i] for i in range(case.batch)], list(task.test)[:m]
        floors: dict[str, list[float]] = {rule: [] for rule in RULES}
        times: dict[str, list[float]] = {rule: [] for rule in RULES}
        for k in range(RUNS + 1):
            both, alone = passes(task, train + test), passes(task, train)
            products = 2 * case.batch * m * size / rate()
            for rule in RULES:
                run = Replay(folder / f"{name}-{rule}.h5", task=task)
                job = lambda: run.influence(range(m), methods=("tracin",), progress=False)  # noqa: B023,E731
                found = timed(job) / case.steps
                if k:
                    times[rule].append(found)
                    floors[rule].append(both + products + (alone if rule == "AdamW" else 0))
        for rule in RULES:
            ours, floor = (statistics.median(x[rule]) for x in (times, floors))
            print(
                f"  m = {m:3d}  {rule:9s} {1e3 * ours:9.1f} ms a step, floor {1e3 * floor:8.1f}: "
                f"{ours / floor:5.2f} x",
                flush=True,
            )


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or CASES:
            measure(name, Path(folder))


if __name__ == "__main__":
    main()
