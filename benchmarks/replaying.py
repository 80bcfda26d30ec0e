"""What a replay costs, over the natural floor, and methods over each other.

The floor of a step is one plain forward and backward pass over the batch and the test examples
together, collated beforehand. One process, candidates interleaved, medians of the ratios of each
round, processor time of one thread. Each row says what issue it was aimed at, and what was reached.

    python benchmarks/replaying.py [CASE ...] [--rounds N]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from replay import Replay, Task
from tracer import TracingOptimizer, with_ids

sys.path.insert(0, str(Path(__file__).parents[1]))  # examples are not installed
import engine

from examples.digits import task as digits


@dataclass(frozen=True)
class Case:
    """A run to replay.

    Attributes:
        task: Its task.
        b: Examples in a batch.
        m: Test examples.
        optimizer: Makes its optimizer.
        steps: How many.
        target: What a whole step of ``tracin`` is to take over the floor.
        values: As for ``Replay``.
    """

    task: Callable[[], Task]
    b: int
    m: int
    optimizer: Callable[[Any], torch.optim.Optimizer]
    steps: int
    target: float
    values: str = "float64"


def mlp(*widths: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        pairs = itertools.pairwise(widths)
        layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

    return build


def random_task(build: Callable[[], nn.Module], size: int) -> Task:
    torch.manual_seed(1)
    data = [(torch.randn(size), torch.tensor(k % 10)) for k in range(1600)]
    return Task(model=build, loss=engine.labelled, train=data[:1400], test=data[1400:])


def large_task(name: str) -> Task:
    torch.manual_seed(1)
    case = engine.CASES[name]
    whole = case.data(300)
    data = [tuple(one[k] for one in whole) for k in range(300)]
    return Task(model=case.model, loss=case.loss, train=data[:200], test=data[200:])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


CASES = {
    "digits": Case(lambda: digits, 32, 20, sgd, 45, 2.5),
    "85k": Case(lambda: random_task(mlp(64, 256, 256, 10), 64), 32, 20, sgd, 45, 2.5),
    "85k-adamw": Case(lambda: random_task(mlp(64, 256, 256, 10), 64), 32, 20, adamw, 45, 4.0),
    "269k": Case(lambda: random_task(mlp(784, 256, 256, 10), 784), 64, 100, sgd, 22, 1.5),
    "GPT": Case(lambda: large_task("GPT"), 32, 100, sgd, 3, 1.4, "model"),
    "ResNet-9": Case(lambda: large_task("ResNet-9"), 32, 100, sgd, 3, 1.4, "model"),
}
SMALL = ("digits", "85k", "85k-adamw", "269k")


def trace(path: Path, case: Case, task: Task) -> None:
    torch.manual_seed(0)
    model = task.model()
    loader = DataLoader(with_ids(task.train), batch_size=case.b, shuffle=True, drop_last=True)
    batches = (one for _ in range(1 + case.steps) for one in loader)
    inner = case.optimizer(model.parameters())
    with TracingOptimizer(inner, model, path, snapshot_every=1) as optimizer:
        for _ in range(case.steps):
            ids, batch = next(batches)
            optimizer.zero_grad()
            task.loss(model, batch).mean().backward()
            optimizer.step(batch_ids=ids)


def floor(run: Replay, task: Task, test_ids: list[Any]) -> Callable[[], object]:
    model = task.model()
    parameters = list(model.parameters())
    batches = [
        task.collate(
            [*(task.train[i] for i in run.log.batch_ids(t)), *map(task.test.__getitem__, test_ids)]
        )
        for t in range(len(run.log))
    ]

    def passes() -> None:
        for batch in batches:
            torch.autograd.grad(task.loss(model, batch).sum(), parameters)

    return passes


def candidates(case: Case, path: Path) -> dict[str, Callable[[], object]]:
    task = case.task()
    trace(path, case, task)
    run = Replay(path, task=task, values=case.values)
    ids = list(task.test)[: case.m] if isinstance(task.test, dict) else list(range(case.m))

    def replay(*methods: str, tolerance: float | None = None) -> Callable[[], object]:
        return lambda: run.influence(
            ids, methods=methods, ideal_tolerance=tolerance, progress=False
        )

    jobs = {"floor": floor(run, task, ids), "tracin": replay("tracin")}
    if case.values == "float64":
        jobs["ideal, no refinement"] = replay("ideal")
        jobs["ideal, tolerance 1e-3"] = replay("ideal", tolerance=1e-3)
        jobs["tracincp, 10 checkpoints"] = replay("tracincp")
        jobs["unrolled"] = replay("unrolled")
        jobs["three, tolerance 1e-3"] = replay("tracin", "ideal", "tracincp", tolerance=1e-3)
    return jobs


def measured(case: Case, rounds: int) -> dict[str, list[float]]:
    """Return processor seconds of each candidate, round by round, without the first one."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = candidates(case, Path(folder) / "run.h5")
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(rounds + 1):
            for name, job in jobs.items():
                began = time.process_time()
                job()
                times[name].append(time.process_time() - began)
    return {name: found[1:] for name, found in times.items()}


def ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(of, to, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.cases or SMALL:
        case = CASES[name]
        found = measured(case, given.rounds)
        print(f"{name}: {case.steps} steps, b = {case.b}, m = {case.m}, 1 thread")
        for job, seconds in found.items():
            print(
                f"  {job:26s} {1e3 * statistics.median(seconds) / case.steps:8.2f} ms a step "
                f"{ratio(seconds, found['floor']):7.2f} x floor "
                f"{ratio(seconds, found['tracin']):7.2f} x tracin"
            )
        reached = ratio(found["tracin"], found["floor"])
        print(f"  target: tracin {case.target} x floor, reached {reached:.2f}", flush=True)


if __name__ == "__main__":
    main()
