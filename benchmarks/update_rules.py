"""What splitting momentum and AdamW costs, against the natural floor and against plain SGD.

The floor of a step is one plain forward and backward pass over the batch and the test examples
together and the 2 b m P floating-point operations of the products, at the rate of a matrix product
measured here. *AdamW, again* may hold half of its steps only, so that batches are passed once more
before the walk backwards, and so does its floor. What a step of the replay takes is the difference
between a run's first 2 and first 2 + k steps, divided by k: reading, checks and values of the test
loss in float64 are in it, opening the log and proving the gradients in the first and the last step
are not. One process, one thread, candidates in turns, medians of three.

    python benchmarks/update_rules.py [MLP|ResNet-9|GPT ...] [m ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from engine import CASES, Case
from torch.utils.data import TensorDataset

from replay import Replay, Task
from replay.progress import Progress
from tracer import TracingOptimizer

RUNS, N, M = 3, 128, 100
STEPS = {"MLP": 20, "ResNet-9": 2, "GPT": 3}
AGAIN = "AdamW, again"
RULES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    AGAIN: lambda p: torch.optim.AdamW(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "Muon": lambda p: torch.optim.Muon([w for w in p if w.dim() == 2], lr=1e-3),
}


def task_of(case: Case) -> Task:
    torch.manual_seed(1)
    x, y = case.data(N + M)

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return case.model()

    return Task(model, case.loss, TensorDataset(x[:N], y[:N]), TensorDataset(x[N:], y[N:]))


def trace(task: Task, case: Case, rule: str, path: Path, steps: int) -> None:
    model = task.model()
    with TracingOptimizer(RULES[rule](model.parameters()), model, path) as optimizer:
        for _ in range(steps):
            ids = torch.randperm(N)[: case.b].tolist()
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


def passes(task: Task, examples: list[Any]) -> float:
    """Return the time of one plain forward and backward pass."""
    model, batch = task.model(), task.collate(examples)
    return timed(
        lambda: torch.autograd.grad(task.loss(model, batch).sum(), list(model.parameters()))
    )


def step(path: Path, task: Task, m: int, more: int, *, again: bool = False) -> float:
    """Return what one more step of a replay takes."""
    seconds = []
    for stop in (2, 2 + more):
        run = Replay(path, task)
        if again:
            hold_half(run, range(stop))
        seconds.append(
            timed(
                lambda run=run, stop=stop: run.influence(  # type: ignore[misc]
                    range(m), methods=("tracin",), steps=slice(0, stop), progress=False
                )
            )
        )
    return (seconds[1] - seconds[0]) / more


def hold_half(run: Replay, steps: range) -> None:
    """Give replayed steps less memory than a window takes: half of it are held at once."""
    bound = run._run
    with bound.computing(), Progress(enabled=False) as shown:
        held = bound.tape(steps, shown, allow_mismatch=False).estimate().nbytes - 1
    how = replace(bound.computing, budget=4 * held)  # a tape takes a quarter
    run._run = replace(bound, computing=how)


def measure(name: str, folder: Path, counts: list[int]) -> None:
    case, more = CASES[name], STEPS[name]
    task = task_of(case)
    size = sum(p.numel() for p in task.model().parameters())
    print(f"{name}: {size:,} parameters, batch {case.b}", flush=True)
    for rule in RULES:
        with redirect_stderr(StringIO()):
            trace(task, case, rule, folder / f"{rule}.h5", 2 + more)
    for m in counts:
        train, test = [task.train[i] for i in range(case.b)], [task.test[j] for j in range(m)]
        floors: dict[str, list[float]] = {rule: [] for rule in RULES}
        times: dict[str, list[float]] = {rule: [] for rule in RULES}
        for _ in range(RUNS):
            both, alone = passes(task, train + test), passes(task, train)
            products = 2 * case.b * m * size / rate()
            for rule in RULES:
                again = rule == AGAIN
                times[rule].append(step(folder / f"{rule}.h5", task, m, more, again=again))
                floors[rule].append(both + products + (alone if again else 0))
        for rule in RULES:
            ours, floor = (statistics.median(x[rule]) for x in (times, floors))
            print(
                f"  m = {m:3d}  {rule:12s} {1e3 * ours:9.1f} ms a step, floor {1e3 * floor:8.1f}: "
                f"{ours / floor:5.2f} x",
                flush=True,
            )


def main() -> None:
    torch.set_num_threads(1)
    counts = [int(word) for word in sys.argv[1:] if word.isdigit()] or [1, 10, 100]
    for name in [word for word in sys.argv[1:] if not word.isdigit()] or STEPS:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), counts)


if __name__ == "__main__":
    main()
