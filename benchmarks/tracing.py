"""What tracing costs: training time with it over training time without, and bytes a step.

One process, one torch thread. Each candidate is a run of its own; they take turns in blocks of
about half a second, and a block's time is divided by that of the untraced block of its turn;
median and quartiles of fifteen. A second untraced run says how far two of a kind are apart. After a
block, outside the timing, what the ring of buffers (64 MiB) still holds is written, and all files
go to the disk, so that no candidate's block has the writes of another beside it.
Beside the log what people do without one: ``torch.save`` of the state dict every step, and a
safetensors file every step.

    python benchmarks/tracing.py [CASE ...]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tracer import TracingOptimizer, open_log

BLOCKS = 15


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for left, right in pairwise(sizes):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, 155),
        nn.ReLU(),
        nn.Linear(155, 10),
    )


class Transformer(nn.Module):
    """Four layers, width 128, 64 tokens, vocabulary 64: 0.81M parameters."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, 0.1, batch_first=True)
        self.embedding = nn.Embedding(64, 128)
        self.layers = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(128, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, ``(b, 64, T)``."""
        return self.head(self.layers(self.embedding(tokens))).transpose(1, 2)


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 64, (4, 64)), torch.randint(0, 64, (4, 64))


def labelled(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape), torch.randint(0, 10, (shape[0],))


def sgd(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=0.05)


def momentum(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=0.01, momentum=0.9)


def adamw(p: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(p, lr=1e-3)


@dataclass(frozen=True)
class Case:
    """A model, its batches, its optimizer, and the steps of a block."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    steps: int


CASES = [
    Case("MLP 784-100-64-10", lambda: mlp(784, 100, 64, 10), lambda: labelled(32, 784), sgd, 400),
    Case("CNN", cnn, lambda: labelled(16, 3, 32, 32), momentum, 30),
    Case("transformer", Transformer, tokens, adamw, 15),
    Case("wide MLP", lambda: mlp(784, 2600, 2600, 512, 10), lambda: labelled(64, 784), momentum, 5),
]


class Saving:
    """An optimizer that writes a file after each step, as loops do without a log."""

    def __init__(
        self, inner: torch.optim.Optimizer, write: Callable[[Path], None], folder: Path
    ) -> None:
        self._inner, self._write, self._folder, self._count = inner, write, folder, 0
        self.zero_grad = inner.zero_grad

    def step(self, **_: Any) -> None:
        """Step and write."""
        self._inner.step()
        self._write(self._folder / f"{self._count}.save")
        self._count += 1

    def flush(self) -> None:
        """Do nothing: the file is written."""

    close = flush


class Run:
    """One candidate's training run."""

    def __init__(self, case: Case, kind: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.case, self.model = case, case.model()
        self.batches = [case.batch() for _ in range(8)]
        inner = case.optimizer(self.model.parameters())
        self.options: dict[str, Any] = {}
        self.synchronous = "synchronous" in kind
        saved = folder / kind
        saved.mkdir()
        state = self.model.state_dict()
        if "untraced" in kind:
            self.optimizer: Any = Saving(inner, lambda path: None, saved)
        elif kind == "torch.save":
            self.optimizer = Saving(inner, lambda path: torch.save(state, path), saved)
        elif kind == "safetensors":
            self.optimizer = Saving(inner, lambda path: save_file(state, path), saved)
        else:
            coding = "delta" if "delta" in kind else "none"
            with redirect_stderr(StringIO()):
                self.optimizer = TracingOptimizer(
                    inner, self.model, folder / f"{kind}.h5", compression=coding
                )
            self.options = {"batch_ids": list(range(len(self.batches[0][0])))}
        self.block()  # creates what there is to create

    def block(self) -> float:
        """Train a block; return seconds a step."""
        began = time.perf_counter()
        for t in range(self.case.steps):
            x, y = self.batches[t % 8]
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step(**self.options)
            if self.synchronous:
                self.optimizer.flush()
        seconds = (time.perf_counter() - began) / self.case.steps
        self.optimizer.flush()
        os.sync()
        return seconds


KINDS = (
    "untraced",
    "untraced again",
    "none",
    "none, synchronous",
    "delta",
    "torch.save",
    "safetensors",
)


def compare(case: Case, folder: Path) -> None:
    """Print a case's table."""
    runs = {kind: Run(case, kind, folder) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(BLOCKS):
        for kind, run in runs.items():
            times[kind].append(run.block())
    for run in runs.values():
        run.optimizer.close()
    parameters = sum(p.numel() for p in runs["untraced"].model.parameters())
    plain = 1e3 * statistics.median(times["untraced"])
    print(f"{case.name}: {parameters:,} parameters, {plain:.2f} ms a step untraced")
    for kind in KINDS[1:]:
        pairs = list(zip(times[kind], times["untraced"], strict=True))
        low, ratio, high = statistics.quantiles(a / b for a, b in pairs)
        more = 1e3 * statistics.median(a - b for a, b in pairs)
        print(
            f"  {kind:20s} {ratio:6.3f} x untraced ({low:.2f} to {high:.2f}), "
            f"{more:6.2f} ms a step more"
        )
    sizes = {}
    for kind in ("none", "delta"):
        with h5py.File(folder / f"{kind}.h5") as file:
            rows = file["steps/w"]
            sizes[kind] = rows.id.get_storage_size() / len(rows)
    print(
        f"  bytes of a row: none {sizes['none']:,.0f}, delta {sizes['delta']:,.0f}: "
        f"{sizes['none'] / sizes['delta']:.2f} times smaller"
    )


def reading(case: Case, folder: Path) -> None:
    """Print how fast snapshots are read, checksums and decoding included."""
    for kind in ("none", "delta"):
        with open_log(folder / f"{kind}.h5") as log:
            size = sum(p.nbytes for p in log.parameters(0).values())
            began = time.perf_counter()
            for t in range(len(log)):
                log.parameters(t)
            scan = time.perf_counter() - began
            order = torch.randperm(len(log), generator=torch.Generator().manual_seed(0))[:10]
            began = time.perf_counter()
            for t in order.tolist():
                log.parameters(t)
            once = (time.perf_counter() - began) / len(order)
            rate = size * len(log) / scan / 1e6
        print(f"  reading {kind}: scan {rate:,.0f} MB/s, one snapshot {1e3 * once:.1f} ms")


def main() -> None:
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    for case in CASES:
        if chosen and not any(word in case.name for word in chosen):
            continue
        with tempfile.TemporaryDirectory() as folder:
            compare(case, Path(folder))
            reading(case, Path(folder))


if __name__ == "__main__":
    main()
