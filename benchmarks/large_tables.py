"""What a replay holds in memory whose tables are larger than ``--memory``; see ``scale.py memory``.

Anonymous memory, which no file stands behind, is sampled every 2 ms: pages of tables on the disk
are the system's to drop. In each process a first small question has everything imported, and what
that freed is given back to the system, so that it hides nothing.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F

from replay import Influence, Replay, Task
from replay.processes.alone import Alone
from replay.processes.group import Group, here
from replay.report import Study, write
from replay.session.together import influence_together
from tracer import TracingOptimizer

TRAIN, TEST, STEPS, MEMORY = 20_000, 1_000, 20, 64 << 20
TURNS, JOB, SHARED = 10, 2, 250  # processes of a kind, of a job, and test examples of a job
METHODS = ("tracin", "tracincp")


class Points:
    """Examples that are made when they are asked for, so that they take no memory."""

    def __init__(self, count: int) -> None:
        self._points = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        return self._points[k], torch.tensor(k % 3)


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the loss of each point."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


TASK = Task(lambda: nn.Linear(8, 3), loss, Points(TRAIN), Points(TEST))


def anonymous() -> int:
    """Return bytes of memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched(what: str, found: Any) -> Iterator[None]:
    """Put into a queue how much more memory some work holds at its peak than there was before."""
    ctypes.CDLL(None).malloc_trim(0)
    before, over, most = anonymous(), threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.002):
            most.append(anonymous() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        found.put((what, max(most)))


def trace(path: Path) -> None:
    """Trace a short run."""
    model = TASK.model()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(inner, model, path, snapshot_every=1) as optimizer:
        for t in range(STEPS):
            ids = list(range(64 * t, 64 * t + 64))
            optimizer.zero_grad()
            TASK.loss(model, TASK.collate([TASK.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)


def report(found: Influence, path: Path) -> None:
    """Write the page of a result."""
    write(Study(found, task=TASK), path, overwrite=True)


def begun(folder: Path) -> Replay:
    """Return a run of which two test examples were asked before."""
    run = Replay(folder / "run.h5", TASK, memory=MEMORY, threads=1)
    run.influence([0, 1], methods=METHODS, progress=False)
    return run


def scores(name: str, found: Any, group: Alone | Group, folder: Path, count: int) -> None:
    """Compute tables and write them."""
    run, out = begun(folder), f"{count}.h5"
    with watched(f"scores, {name}", found):
        asked = (run, range(count), group, folder / out)
        result = influence_together(*asked, methods=METHODS, checkpoints=2)
    if result is not None:
        with watched(f"writing, {name}", found):
            result.save(folder / out, overwrite=True)


def alone(_: int, found: Any, folder: Path) -> None:
    """Answer in one process."""
    with redirect_stderr(StringIO()):
        scores("one process", found, Alone(), folder, TEST)


def job(rank: int, found: Any, folder: Path) -> None:
    """Answer as one process of a job."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(JOB), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": "29572"}
    with redirect_stderr(StringIO()):
        scores(f"process {rank} of {JOB}", found, here(), folder, SHARED)


def reading(_: int, found: Any, folder: Path) -> None:
    """Look at a result that is on the disk."""
    report(begun(folder).influence([0, 1], methods=METHODS, progress=False), folder / "page.html")
    with watched("loading and top", found):
        Influence.load(folder / f"{TEST}.h5").top(3)
    with watched("report", found):
        report(Influence.load(folder / f"{TEST}.h5"), folder / "page.html")


def memory() -> None:
    """Print what each part of the work holds."""
    context, found = torch.multiprocessing.get_context("spawn"), dict[str, list[int]]()
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as name:
            trace(Path(name) / "run.h5")
            for work, processes in ((alone, 1), (job, JOB), (reading, 1)):
                queue = context.SimpleQueue()
                torch.multiprocessing.spawn(work, (queue, Path(name)), processes)
                while not queue.empty():
                    what, most = queue.get()
                    found.setdefault(what, []).append(most)
                    print(f"{what}: {most / 1e6:.0f}", file=sys.stderr, flush=True)
    for count in (TEST, SHARED):
        print(f"{len(METHODS)} tables of {8e-6 * TRAIN * count:.0f} MB", end=", ")
    print(f"--memory {MEMORY / 1e6:.0f} MB, {TURNS} processes of each kind")
    print("| | MB more, median | most |\n|---|---|---|")
    for what, most in found.items():
        print(f"| {what} | {statistics.median(most) / 1e6:.0f} | {max(most) / 1e6:.0f} |")
