"""What a replay holds in memory whose tables are larger than ``--memory``; see ``scale.py memory``.

Anonymous memory, which no file stands behind, is sampled every 2 ms: pages of tables on the disk
are the system's to drop. A first small question has everything imported. glibc keeps freed blocks
for itself, in some processes three times the budget, unless MALLOC_MMAP_THRESHOLD_ is set.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from replay import Influence, Replay, Task
from replay.processes.alone import Alone
from replay.processes.group import here
from replay.report import Study, write
from replay.results.part_folder import remove_parts
from replay.session.together import influence_together
from tracer import TracingOptimizer

TRAIN, TEST, STEPS, MEMORY = 40_000, 1_000, 20, 64 << 20
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
def watched(what: str) -> Iterator[None]:
    """Print how much more memory some work holds at its peak than there was before."""
    before, over, found = anonymous(), threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.002):
            found.append(anonymous() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print(f"| {what} | {max(found) / 1e6:.0f} |", flush=True)


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


def memory() -> None:
    """Print what each part of the work holds."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": "29572"}
    tables = 8 * TRAIN * TEST * len(METHODS)
    print(
        f"tables of {tables / 1e6:.0f} MB, --memory {MEMORY / 1e6:.0f} MB\n| | MB more |\n|---|---|"
    )
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        folder = Path(name)
        trace(log := folder / "run.h5")
        few = Replay(log, TASK, threads=1).influence([0, 1], methods=METHODS, progress=False)
        report(few, folder / "page.html")
        for how, group in (("alone", Alone()), ("a job", here())):
            run = Replay(log, TASK, memory=MEMORY, threads=1)
            with watched(f"scores, {how}"):
                asked = (run, range(TEST), group, folder / "out.h5")
                found = influence_together(*asked, methods=METHODS, checkpoints=2)
            assert found is not None
            with watched(f"writing, {how}"):
                found.save(folder / "out.h5", overwrite=True)
            remove_parts(folder / "out.h5")
        with watched("loading, top"):
            Influence.load(folder / "out.h5").top(3)
        with watched("report"):
            report(Influence.load(folder / "out.h5"), folder / "page.html")
