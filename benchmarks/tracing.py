"""What tracing costs: time of a training step with it and without, and bytes a step.

One process, interleaved, medians of seven; beside it ``torch.save(state_dict)`` every step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tracer import TracingSGD

RUNS, STEPS, BATCH = 7, 60, 32
SIZES = {"MLP 64-64-32-10 (6.6k)": (64, 64, 32, 10), "MLP 784-100-64-10 (86k)": (784, 100, 64, 10)}


def build(sizes: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for left, right in pairwise(sizes):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(
    sizes: tuple[int, ...], after: Callable[[nn.Module], None] | None, log: Path | None
) -> float:
    model = build(sizes)
    x, y = torch.randn(BATCH, sizes[0]), torch.randint(0, sizes[-1], (BATCH,))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TracingSGD(inner, model, log, overwrite=True) if log else inner
    ids = list(range(BATCH))
    began = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step(**({"batch_ids": ids} if log else {}))
        if after is not None:
            after(model)
    if isinstance(optimizer, TracingSGD):
        optimizer.close()
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        log, saved = Path(folder) / "run.h5", Path(folder) / "state.pt"
        for name, sizes in SIZES.items():
            jobs = {
                "untraced": lambda s=sizes: train(s, None, None),
                "traced": lambda s=sizes: train(s, None, log),
                "torch.save": lambda s=sizes: train(
                    s, lambda m: torch.save(m.state_dict(), saved), None
                ),
            }
            times: dict[str, list[float]] = {job: [] for job in jobs}
            for _ in range(RUNS + 1):
                for job, run in jobs.items():
                    times[job].append(run())
            medians = {job: statistics.median(values[1:]) for job, values in times.items()}
            print(
                f"{name}, batch {BATCH}, 1 thread: {log.stat().st_size / STEPS:,.0f} bytes a step"
            )
            for job, value in medians.items():
                print(
                    f"  {job:12s} {1e3 * value:6.2f} ms a step, {value / medians['untraced']:.2f} x"
                )


if __name__ == "__main__":
    main()
