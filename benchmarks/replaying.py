"""What the methods cost on the digits run, against each other and against the natural floor.

The floor of a step is one plain forward and backward pass over the batch and the test examples
together. One process, methods interleaved, medians of five.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from replay import Replay
from tracer import TracingSGD, with_ids

sys.path.insert(0, str(Path(__file__).parents[1]))  # examples are not installed
from examples.digits import task

RUNS, STEPS, TESTS = 5, 45, 20


def trace(path: Path) -> None:
    torch.manual_seed(0)
    model = task.model()
    loader = DataLoader(with_ids(task.train), batch_size=32, shuffle=True)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, path) as optimizer:
        for ids, batch in loader:
            optimizer.zero_grad()
            task.loss(model, batch).mean().backward()
            optimizer.step(batch_ids=ids)


def floor(run: Replay, test_ids: list[int]) -> None:
    model = task.model()
    for t in range(len(run.log)):
        model.load_state_dict(run.log.parameters(t))
        ids = run.log.batch_ids(t)
        examples = [task.train[i] for i in ids] + [task.test[i] for i in test_ids]
        loss = task.loss(model, task.collate(examples)).sum()
        torch.autograd.grad(loss, list(model.parameters()))


def main() -> None:
    torch.set_num_threads(1)
    test_ids = list(task.test)[:TESTS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        trace(path)
        run = Replay(path, task=task)

        def replay(methods: tuple[str, ...], tolerance: float | None = None) -> None:
            run.influence(test_ids, methods=methods, ideal_tolerance=tolerance, progress=False)

        three = ("tracin", "ideal", "tracincp")

        jobs = {
            "floor": lambda: floor(run, test_ids),
            "tracin": lambda: replay(("tracin",)),
            "ideal, no refinement": lambda: replay(("ideal",)),
            "ideal, tolerance 1e-3": lambda: replay(("ideal",), 1e-3),
            "tracin + ideal, no refinement": lambda: replay(("tracin", "ideal")),
            "tracincp, 10 checkpoints": lambda: replay(("tracincp",)),
            "unrolled": lambda: replay(("unrolled",)),
            "all three, no refinement": lambda: replay(three),
            "all three, tolerance 1e-3": lambda: replay(three, 1e-3),
        }
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(RUNS + 1):
            for name, job in jobs.items():
                began = time.perf_counter()
                job()
                times[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(
        f"digits MLP 64-64-32-10, {len(run.log)} steps, batch 32, {TESTS} test examples, 1 thread"
    )
    for name, value in medians.items():
        print(
            f"{name:32s} {1e3 * value / len(run.log):7.2f} ms a step  "
            f"{value / medians['floor']:6.2f} x floor  {value / medians['tracin']:5.2f} x tracin"
        )


if __name__ == "__main__":
    main()
