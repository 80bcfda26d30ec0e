"""What exact per-example gradients cost, over a plain forward and backward pass.

The floor is one forward and backward pass over the b training and m test examples together, with
plain gradients. *engine*: both sides' gradients and their ``(b, m)`` products. One process,
interleaved, medians of seven (MLP: 21, three where m = 1000 takes seconds), float32.

    python benchmarks/engine.py [CASE ...] [--threads N] [--m M ...] [--memory]

With ``--memory``: peak memory beyond what the model and the data take, each candidate in a process
of its own. With neither ``--threads`` nor ``--memory``: one thread, two threads, memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replay.gradients.engine import Engine
from replay.gradients.forms import products

Batch = tuple[Tensor, Tensor]


def mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for left, right in pairwise((784, 256, 256, 10)):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 110), nn.ReLU(), nn.Linear(110, 10)),
    )


def block(left: int, right: int, pool: bool) -> nn.Module:
    layers = [nn.Conv2d(left, right, 3, padding=1, bias=False), nn.GroupNorm(8, right), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two convolutions around which the input goes, too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(block(width, width, False), block(width, width, False))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + inner(x)``."""
        return x + self.inner(x)


def resnet9() -> nn.Module:
    return nn.Sequential(
        *(block(3, 32, False), block(32, 64, True), Residual(64)),
        *(block(64, 128, True), block(128, 256, True), Residual(256)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, 10)),
    )


class Layer(nn.Module):
    """A transformer layer as GPT has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(b, T, d)``."""
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class GPT(nn.Module):
    """Token and position embeddings, four layers, an untied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, 128), nn.Embedding(64, 128)
        self.layers = nn.Sequential(*(Layer(128, 4) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(128), nn.Linear(128, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``(b, T, V)``."""
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.norm(self.layers(h)))


def labelled(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch[0]).transpose(1, 2)
    return F.cross_entropy(logits, batch[1], reduction="none").mean(1)


@dataclass(frozen=True)
class Case:
    """A model, its data, and the size of a training batch."""

    model: Callable[[], nn.Module]
    data: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    b: int


def pictures(*shape: int) -> Callable[[int], Batch]:
    return lambda n: (torch.randn(n, *shape), torch.randint(0, 10, (n,)))


def texts(n: int) -> Batch:
    return torch.randint(0, 256, (n, 64)), torch.randint(0, 256, (n, 64))


CASES = {
    "MLP": Case(mlp, pictures(784), labelled, 64),
    "LeNet": Case(lenet, pictures(1, 28, 28), labelled, 64),
    "ResNet-9": Case(resnet9, pictures(3, 32, 32), labelled, 32),
    "GPT": Case(GPT, texts, next_token, 32),
}


def chosen(batch: Batch, rows: slice) -> Batch:
    return batch[0][rows], batch[1][rows]


def candidates(case: Case, m: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = case.model()
    parameters = dict(model.named_parameters())
    whole = case.data(case.b + m)
    batch, test = chosen(whole, slice(case.b)), chosen(whole, slice(case.b, None))
    scale, weights = dict.fromkeys(parameters, 0.1), torch.full((case.b,), 1 / case.b)
    engines = Engine(10**9), Engine(10**9)

    def floor() -> object:
        model.train()
        return torch.autograd.grad(case.loss(model, whole).sum(), list(parameters.values()))

    def engine() -> object:
        model.train()
        mine = engines[0].of_batch(
            parameters, lambda: case.loss(model, batch), weights, budget=1 << 30
        )
        model.eval()
        other = engines[1].of_independent(
            parameters,
            lambda: case.loss(model, test),
            lambda i: case.loss(model, chosen(test, slice(i, i + 1))),
        )
        return products.inner(mine, other, scale)

    return {"floor": floor, "engine": engine}


def medians(runs: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Return seconds of each candidate, interleaved, after one call to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak(case: Case, m: int, name: str) -> float:
    """Return the memory that a candidate takes in a forked process, MB."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run = candidates(case, m)[name]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            run()
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(write, str(found).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(read, 64)) / 1024


def memory(names: list[str]) -> None:
    torch.set_num_threads(1)  # also because threads do not outlive a fork
    for name in names:
        floor, engine = (peak(CASES[name], 100, kind) for kind in ("floor", "engine"))
        print(f"{name:10s} m = 100  floor {floor:7.0f} MB, engine {engine:7.0f} MB", flush=True)


def times(names: list[str], threads: int, counts: list[int]) -> None:
    torch.set_num_threads(threads)
    print(f"{threads} thread(s): ms, and times the floor")
    for name in names:
        for m in counts:
            long = m == 1000 and name in ("ResNet-9", "GPT")
            rounds = 21 if name == "MLP" else 3 if long else 7
            found = medians(candidates(CASES[name], m), rounds)
            ratios = (f"{k} {1e3 * s:9.2f} ({s / found['floor']:.2f} x)" for k, s in found.items())
            print(f"{name:10s} m = {m:<5d}", *ratios, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--m", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    names = given.cases or list(CASES)
    if given.memory:
        memory(names)
    elif given.threads:
        times(names, given.threads, given.m)
    else:
        for threads in (1, 2):
            times(names, threads, given.m)
        # in a new process: what this one keeps of its timing would hide what candidates take
        subprocess.run([sys.executable, __file__, *names, "--memory"], check=True)
