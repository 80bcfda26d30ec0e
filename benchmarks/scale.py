"""What several processes cost and save.

*tracing*: a step of DistributedDataParallel with two ranks of one thread each, traced over
untraced. Both are runs of the same processes that take turns in blocks; a block's time is divided
by that of the untraced block of its turn. Median and quartiles of the ratios on rank 0, and the
processor time of all threads of both ranks, which other programs on the machine change less. A
second untraced run says how far two of a kind are apart. *rank 0 alone* logs what that rank did,
and nothing of the other one: the rest is what gathering adds.

*replaying*: `tracin` of a run of the same model, 100 test examples, shared among processes of one
thread each, over one process alone with one thread. From the moment at which all processes have
opened the run to the result; the parts' files are in it. Median of the ratios of the turns.

*memory*: what a process holds whose tables are larger than its `--memory`.

*model*: what a step of a replay takes, fitted to small sizes, and by that a large one.

    python benchmarks/scale.py tracing
    python benchmarks/scale.py replaying
    python benchmarks/scale.py memory
    python benchmarks/scale.py model
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from cost_model import model
from large_tables import memory
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from replay import Replay, Task
from replay.processes.alone import Alone
from replay.processes.group import here
from replay.results.part_folder import remove_parts
from replay.session.together import influence_together
from tracer import TracingOptimizer

RANKS, BLOCKS, STEPS = 2, 30, 8
TRACED, TURNS = 72, 1
KINDS = ("untraced", "untraced again", "rank 0 alone", "traced")


class Encoder(nn.Module):
    """Two layers, width 128, 64 tokens, vocabulary 64; dropout, so that random states change."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, 0.1, batch_first=True)
        self.embedding = nn.Embedding(64, 128)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(128, 64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits, ``(b, 64, T)``."""
        return self.head(self.layers(self.embedding(tokens))).transpose(1, 2)


class Run:
    """One candidate's training run, on one rank.

    Args:
        kind: Of ``KINDS``.
        folder: For its log.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        torch.manual_seed(0)
        self._ddp = DistributedDataParallel(Encoder())
        self._batch = torch.randint(0, 64, (16, 64)), torch.randint(0, 64, (16, 64))
        self.optimizer: Any = torch.optim.AdamW(self._ddp.parameters(), lr=1e-3)
        self._options: dict[str, Any] = {}
        model = {"traced": self._ddp, "rank 0 alone": self._ddp.module}.get(kind)
        if model is not None and (kind == "traced" or dist.get_rank() == 0):
            with redirect_stderr(StringIO()):
                self.optimizer = TracingOptimizer(self.optimizer, model, folder / f"{kind}.h5")
            self._options = {"batch_ids": list(range(16))}
        self.block()

    def block(self) -> tuple[float, float]:
        """Train a block; return a step's seconds, and processor seconds of both ranks."""
        dist.barrier()
        began, used = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            x, y = self._batch
            self.optimizer.zero_grad()
            F.cross_entropy(self._ddp(x), y).backward()
            self.optimizer.step(**self._options)
        took = time.perf_counter() - began
        both = torch.tensor(time.process_time() - used, dtype=torch.float64)
        dist.all_reduce(both)
        return took / STEPS, both.item() / STEPS


def rank(number: int, folder: Path) -> None:
    """Be one rank; rank 0 prints."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    where = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", where, world_size=RANKS, rank=number)
    runs = {kind: Run(kind, folder) for kind in KINDS}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for turn in range(BLOCKS):
        for kind in KINDS[turn % 4 :] + KINDS[: turn % 4]:  # none is always the first
            times[kind].append(runs[kind].block())
    for run in runs.values():
        getattr(run.optimizer, "close", str)()
    if number == 0:
        show(times)
    dist.destroy_process_group()


def show(times: dict[str, list[tuple[float, float]]]) -> None:
    """Print a row for each kind."""
    base = times["untraced"]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    both = 1000 * statistics.median(one[1] for one in base)
    print(f"processor time of an untraced step on both ranks: {both:.1f} ms")
    print("| run | ms a step | over untraced: quartiles, median | processor time |")
    print("|---|---|---|---|")
    for kind, found in times.items():
        wall = [one[0] / other[0] for one, other in zip(found, base, strict=True)]
        used = [one[1] / other[1] for one, other in zip(found, base, strict=True)]
        low, middle, high = statistics.quantiles(wall, n=4)
        step = 1000 * statistics.median(one[0] for one in found)
        row = f"{low:.3f}..{high:.3f}, **{middle:.3f}**"
        print(f"| {kind} | {step:.1f} | {row} | {statistics.median(used):.3f} |")


def tracing() -> None:
    """Compare runs of two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank, (Path(folder),), nprocs=RANKS)


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of each sequence's tokens."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none").mean(1)


def sequences(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return inputs and what is to be predicted."""
    draw = torch.Generator().manual_seed(count)
    return [tuple(torch.randint(0, 64, (2, 64), generator=draw)) for _ in range(count)]


TASK = Task(Encoder, loss, sequences(256), sequences(100))
RULES = {"SGD": partial(torch.optim.SGD, lr=0.05), "AdamW": partial(torch.optim.AdamW, lr=1e-3)}


def trace(path: Path, rule: str) -> None:
    """Trace a short run."""
    torch.manual_seed(0)
    model = TASK.model()
    inner = RULES[rule](model.parameters())
    with TracingOptimizer(inner, model, path, snapshot_every=1) as optimizer:
        for t in range(TRACED):
            ids = [(32 * t + k) % 256 for k in range(32)]
            optimizer.zero_grad()
            TASK.loss(model, TASK.collate([TASK.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)


def replayed(number: int, size: int, path: Path, told: Any) -> None:
    """Be one process of a job; 0 processes are one alone, without a job."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(max(1, size))}
    os.environ |= {"LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(max(1, size))}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    group, run = here() if size else Alone(), Replay(path, TASK, threads=1)
    target = path.with_name(f"{size}.h5")
    with group.agreeing(), redirect_stderr(StringIO()):
        run.influence([0], methods="tracin", steps="0:1", progress=False)  # all is imported
    began = time.perf_counter()
    with redirect_stderr(StringIO()):
        found = influence_together(run, range(100), group, target, methods="tracin")
    if found is not None:
        told.put(time.perf_counter() - began)
        remove_parts(target)


def replaying() -> None:
    """Compare jobs of some processes."""
    context = torch.multiprocessing.get_context("spawn")
    print("| optimizer | processes | s | one alone over these: lowest, median, highest |")
    print("|---|---|---|---|")
    for rule in RULES:
        times: dict[int, list[float]] = {size: [] for size in (0, 1, 2, 4)}
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            trace(path := Path(folder) / "run.h5", rule)
            for size in [*times] * TURNS:
                told = context.SimpleQueue()
                asked = (size, path, told)
                torch.multiprocessing.spawn(replayed, asked, nprocs=max(1, size))
                times[size].append(told.get())
        for size, found in times.items():
            over = sorted(alone / one for alone, one in zip(times[0], found, strict=True))
            row = f"{over[0]:.2f}, **{statistics.median(over):.2f}**, {over[-1]:.2f}"
            print(f"| {rule} | {size or 'alone'} | {statistics.median(found):.1f} | {row} |")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in sys.argv[1:] or ["tracing", "replaying", "memory", "model"]:
        {"tracing": tracing, "replaying": replaying, "memory": memory, "model": model}[name]()
