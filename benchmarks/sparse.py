"""What a sparse log saves and what it costs while training: bytes, a training step.

One process, one torch thread, candidates in turns, medians of the ratios of each turn. Beside wall
time stands processor time, of the training thread and of the process, which other work on the
machine moves less. ``k = 100`` throughout. What it costs a replay is in ``sparse_replaying.py``.

*Size*: the same run of AdamW, dense without compression and sparse. *Tracing*: as ``tracing.py``,
in blocks of whole snapshots.

    python benchmarks/sparse.py [size|tracing ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tracing import CASES, Case, adamw

from tracer import TracingOptimizer

K = 100
SPARSE: dict[str, Any] = {"snapshot_every": K}
DENSE: dict[str, Any] = {"snapshot_every": 1, "compression": "none"}
CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time, "process": time.process_time}


class Run:
    """A training run in blocks.

    Args:
        case: Model, batches and optimizer.
        path: Its log; None is not traced.
        how: Options of the log.
    """

    def __init__(self, case: Case, path: Path | None, **how: Any) -> None:
        torch.manual_seed(0)
        self.model = case.model()
        self.batches = [case.batch() for _ in range(8)]
        self.optimizer: Any = case.optimizer(self.model.parameters())
        self.options: dict[str, Any] = {}
        if path is not None:
            with redirect_stderr(StringIO()):
                self.optimizer = TracingOptimizer(self.optimizer, self.model, path, **how)
            self.options = {"batch_ids": list(range(len(self.batches[0][0])))}

    def block(self, steps: int) -> list[float]:
        """Train; return seconds a step on each clock."""
        began = [clock() for clock in CLOCKS.values()]
        for t in range(steps):
            x, y = self.batches[t % 8]
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step(**self.options)
        ended = [clock() for clock in CLOCKS.values()]
        if self.options:
            self.optimizer.flush()
        return [(b - a) / steps for a, b in zip(began, ended, strict=True)]


def size(folder: Path) -> None:
    """Print how much smaller a sparse log is."""
    for case, steps in ((CASES[0], 1000), (CASES[2], 400)):
        found = []
        for kind, how in (("dense", DENSE), ("sparse", SPARSE)):
            path = folder / f"{kind} {case.name}.h5"
            run = Run(Case(case.name, case.model, case.batch, adamw, 0), path, **how)
            run.block(steps)
            run.optimizer.close()
            found.append(path.stat().st_size)
            path.unlink()
        dense, sparse = found
        print(
            f"{case.name}, AdamW, {steps} steps: {dense / 1e6:.0f} and {sparse / 1e6:.1f} MB, "
            f"{dense / sparse:.1f} times smaller",
            flush=True,
        )


def tracing(folder: Path) -> None:
    """Print what tracing costs."""
    for case, steps, turns in ((CASES[0], 400, 9), (CASES[1], K, 5), (CASES[2], K, 5)):
        runs = {
            "untraced": Run(case, None),
            "untraced again": Run(case, None),
            "sparse": Run(case, folder / f"sparse {case.name}.h5", **SPARSE),
            "dense": Run(case, folder / f"dense {case.name}.h5", **DENSE),
        }
        for run in runs.values():
            run.block(10)
        times: dict[str, list[list[float]]] = {name: [] for name in runs}
        for _ in range(turns):
            for name, run in runs.items():
                times[name].append(run.block(steps))
        plain = times["untraced"]
        print(f"{case.name}: {1e3 * statistics.median(t[0] for t in plain):.2f} ms a step untraced")
        for name in list(runs)[1:]:
            pairs = list(zip(times[name], plain, strict=True))
            ratios = [
                f"{clock} {statistics.median(a[k] / b[k] for a, b in pairs):.3f}"
                for k, clock in enumerate(CLOCKS)
            ]
            print(f"  {name:16s} {', '.join(ratios)} x untraced", flush=True)
        for run in list(runs.values())[2:]:
            run.optimizer.close()


def main() -> None:
    """Print what was asked for."""
    torch.set_num_threads(1)
    rooms = {"size": size, "tracing": tracing}
    for name in sys.argv[1:] or rooms:
        with tempfile.TemporaryDirectory() as folder:
            rooms[name](Path(folder))


if __name__ == "__main__":
    main()
