"""What a sparse log costs a replay: a step of ``tracin``, opening it, one state.

One process, one torch thread, processor time, medians; ``k = 100`` throughout.

*Replaying*: what one more step of ``tracin`` takes, as in ``update_rules.py``, dense and sparse in
turns. *Opening*: a log of 100,000 steps that is written without training; and one random state of a
run, beside plain steps of the same model.

    python benchmarks/sparse_replaying.py [replaying|opening ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import engine
import torch
from sparse import DENSE, SPARSE, K
from torch import nn
from update_rules import RULES, N, task_of

from replay import Replay
from replay.command.show.inspect import inspection
from tracer import TracingOptimizer, open_log
from tracer.codec.layout import pack
from tracer.codec.nested import encode
from tracer.log.write.creation import LogOptions, create_log, environment
from tracer.records import MicroBatch, ParameterGroup, RandomState, Step


def traced(task: Any, case: Any, rule: str, path: Path, steps: int, **how: Any) -> None:
    """Train and trace a run."""
    torch.manual_seed(0)
    model = task.model()
    inner = RULES[rule](model.parameters())
    with redirect_stderr(StringIO()), TracingOptimizer(inner, model, path, **how) as optimizer:
        for _ in range(steps):
            ids = torch.randperm(N)[: case.b].tolist()
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)


def trained(task: Any, case: Any, steps: int) -> None:
    """Train without tracing."""
    model = task.model()
    optimizer = RULES["AdamW"](model.parameters())
    for _ in range(steps):
        ids = torch.randperm(N)[: case.b].tolist()
        optimizer.zero_grad()
        task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
        optimizer.step()


def scored(path: Path, task: Any, stop: int) -> float:
    """Return the processor time of a replay of the first steps."""
    run = Replay(path, task)
    began = time.process_time()
    run.influence(range(10), methods=("tracin",), steps=slice(0, stop), progress=False)
    return time.process_time() - began


def replaying(folder: Path) -> None:
    """Print what one more step of a replay takes."""
    for name, more, turns in (("MLP", 40, 5), ("GPT", 4, 3)):
        case = engine.CASES[name]
        task = task_of(case)
        for rule in ("SGD", "AdamW"):
            found: list[list[float]] = []
            paths = [folder / f"{kind} {name} {rule}.h5" for kind in ("dense", "sparse")]
            for path, how in zip(paths, (DENSE, SPARSE), strict=True):
                traced(task, case, rule, path, 2 + more, **how)
            for _ in range(turns):
                found.append(
                    [(scored(p, task, 2 + more) - scored(p, task, 2)) / more for p in paths]
                )
            dense, ratio = (
                statistics.median(values)
                for values in ([a for a, _ in found], [b / a for a, b in found])
            )
            print(
                f"{name}, {rule}: {1e3 * dense:.1f} ms a step dense, sparse {ratio:.2f} x",
                flush=True,
            )


def written(path: Path, steps: int) -> None:
    """Write a log of a small model without training it."""
    model = nn.Linear(4, 2)
    adam = torch.optim.AdamW(model.parameters())
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    random = RandomState(torch.get_rng_state())
    numbers = {"lr": 1e-3, "betas.0": 0.9, "betas.1": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    known = {"task": "", "model": "Linear", "optimizer": "torch.optim.AdamW", "reduction": "mean"}
    known |= {"update_rule": "AdamW", "record": "ids", "cuda_devices": ""}
    writer = create_log(
        path,
        parameters,
        {},
        hyperparameters=[*numbers, "gradient_norm"],
        random_bytes=len(random.cpu),
        attributes={**known, "snapshot_every": K, **environment()},
        options=LogOptions(state_every=K),
    )
    row, none = pack(parameters), pack({})
    state = {"parameters": parameters, "buffers": {}, "optimizer": adam.state_dict()}
    data = encode({**state, "random": {"cpu": random.cpu, "cuda": {}}, "epoch": 0}, "the state")
    weights = torch.tensor(1 / 32, dtype=torch.float64).expand(32)
    group = ParameterGroup(tuple(parameters), numbers, 1.0, (0.5, 0.5))
    writer.begin(row, 1)
    for t in range(steps):
        if t % K == 0:
            writer.state(t, data, passing=False)
        ids = tuple((7 * t + j) % 5000 for j in range(32))
        batch = MicroBatch(ids, weights, random)
        writer.append(Step(t, t // 1000, (batch,), (group,), 1.0), row, none, none)
    writer.state(steps, data, passing=True)
    writer.close()


def timed(job: Callable[[], Any]) -> float:
    """Return the processor time of a job."""
    began = time.process_time()
    job()
    return time.process_time() - began


def opening(folder: Path) -> None:
    """Print what opening, ``inspect`` and one state take."""
    path = folder / "long.h5"
    written(path, 100_000)
    opened = statistics.median(timed(lambda: open_log(path).close()) for _ in range(5))
    with open_log(path) as log:
        looked = statistics.median(timed(lambda: inspection(log)) for _ in range(5))
    print(f"100,000 steps: opened in {opened:.3f} s, inspected in {looked:.3f} s")
    case, path = engine.CASES["MLP"], folder / "run.h5"
    task = task_of(case)
    traced(task, case, "AdamW", path, 10 * K, **SPARSE)
    plain = timed(lambda: trained(task, case, K)) / K
    chosen = torch.randperm(10 * K, generator=torch.Generator().manual_seed(0))[:9].tolist()
    run = Replay(path, task)
    ratios = [timed(lambda t=t: run.state_dict(t)) / plain for t in chosen]  # type: ignore[misc]
    taken = statistics.mean(t % K for t in chosen)
    print(f"one state: {taken:.0f} steps taken again, in the time of {statistics.mean(ratios):.0f}")


def main() -> None:
    """Print what was asked for."""
    torch.set_num_threads(1)
    rooms = {"replaying": replaying, "opening": opening}
    for name in sys.argv[1:] or rooms:
        with tempfile.TemporaryDirectory() as folder:
            rooms[name](Path(folder))


if __name__ == "__main__":
    main()
