"""What counterfactual runs and the derivative of the run cost, beside training and bergson's MAGIC.

Time of the processor, since other work would count in that of the wall; candidates in turns,
medians, one thread. MAGIC is measured where bergson can be imported (`pip install bergson`).
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from replay import Replay, Task
from replay.counterfactual import stacks
from replay.counterfactual.change import Change
from replay.session.alternatives import Alternatives
from replay.session.counterfactual_runs import runs_of
from replay.task import example_ids
from tracer import TracingOptimizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # examples are not installed
from examples.digits import task as digits

TURNS, TESTS, LANES = 5, 20, 64
EPS_ROOT = 1e-20  # with 0, MAGIC of AdamW is NaN here


def losses(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def pictures(model: Callable[[], nn.Module], shape: tuple[int, ...], count: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=generator)
    data = list(zip(x, torch.randint(10, (count,), generator=generator), strict=True))
    return Task(model, losses, data, data[:TESTS])


def wide() -> nn.Module:
    sizes = ((784, 256), (256, 256))
    body = [layer for pair in sizes for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(256, 10))


def cnn() -> nn.Module:
    first = (nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 16, 10))


MODELS = {  # task, steps, batch
    "digits MLP, 6.6k parameters": (digits, 90, 32),
    "MLP 784-256-256-10, 270k": (pictures(wide, (784,), 600), 40, 64),
    "CNN with GroupNorm, 10k": (pictures(cnn, (1, 16, 16), 600), 30, 64),
}
RULES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3),
}


def order(task: Task, steps: int, size: int) -> list[list[Any]]:
    torch.manual_seed(1)
    ids = list(task.train) if isinstance(task.train, dict) else list(range(len(task.train)))
    return [[ids[k] for k in torch.randperm(len(ids))[:size].tolist()] for _ in range(steps)]


def train(task: Task, rule: str, batches: list[list[Any]], path: Path | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = task.model()
    optimizer: Any = RULES[rule](model.parameters())
    if path is not None:
        optimizer = TracingOptimizer(optimizer, model, path, snapshot_every=1)
    for ids in batches:
        optimizer.zero_grad()
        if path is not None:
            optimizer.observe(ids)
        task.loss(model, default_collate([task.train[i] for i in ids])).mean().backward()
        optimizer.step()
    if path is not None:
        optimizer.close()
    return model


def processor(jobs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return medians of several turns, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(TURNS + 1):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@contextlib.contextmanager
def traced(task: Task, rule: str, batches: list[list[Any]]) -> Iterator[Replay]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        train(task, rule, batches, Path(folder) / "run.h5")
        yield Replay(Path(folder) / "run.h5", task)


def counterfactual() -> None:
    print(f"a counterfactual run / plain training of its steps; and one of {LANES} together")
    for model in MODELS:
        for rule in RULES:
            print(f"  {model:30s} {rule:14s} {of_model(model, rule)}", flush=True)


def of_model(model: str, rule: str) -> str:
    task, steps, size = MODELS[model]
    batches = order(task, steps, size)
    first = dict.fromkeys(i for ids in batches[:3] for i in ids)  # by their first step
    several = [Change.removing([i]) for i in list(first)[:LANES]]
    how = {"renormalise": False, "along": None, "allow_mismatch": False}
    with traced(task, rule, batches) as run, run._run.computing():
        tests = example_ids(task.test)[:TESTS]
        asked = Alternatives.of(run.log, task, tests, [several[0].scale], {}, **how)
        runs = runs_of(run._run, asked)
        runs.begin(0)
        runs.walk()
        jobs = {
            "plain": partial(train, task, rule, batches),
            "alone": partial(runs.values, several[0]),
        }
        stacked = len(stacks.stacked(run.log, range(LANES))[0]) > 1
        if stacked:
            jobs["together"] = partial(stacks.taken, runs, several)
        found = processor(jobs)
    told = f"{found['alone'] / found['plain']:.2f}"
    if stacked:
        each = found["together"] / LANES
        told += f", together {each / found['plain']:.2f}, {found['alone'] / each:.1f} times less"
    return told


def unrolled() -> None:
    print(f"unrolled / tracin, m = {TESTS}")
    tests = list(digits.test)[:TESTS]
    for rule in RULES:
        with traced(digits, rule, order(digits, 45, 32)) as run:
            job = partial(run.influence, tests, progress=False)
            names = ("tracin", "unrolled")
            found = processor({name: partial(job, methods=(name,)) for name in names})
        print(f"  digits MLP {rule:14s} {found['unrolled'] / found['tracin']:.2f}", flush=True)


class Batches:
    """What MAGIC takes for a stream of data: batches by number, and weights of examples."""

    device = torch.device("cpu")

    def __init__(self, task: Task, batches: list[list[Any]]) -> None:
        self._task, self._batches = task, batches
        self.ids = list(task.train)
        self.weights = nn.Parameter(torch.ones(len(self.ids)))
        self.requires_grad = True

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, t: int) -> dict[str, Any]:
        ids = self._batches[t]
        places = torch.tensor([self.ids.index(i) for i in ids])
        batch = default_collate([self._task.train[i] for i in ids])
        return {"batch": batch, "example_weight": self.weights[places], "labels": batch[1][:, None]}


class Objective(nn.Module):
    """The mean of weighted losses, as MAGIC calls it."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self._loss, self.model = task.loss, model

    def forward(self, batch: Any, example_weight: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return it; ``labels`` are for MAGIC, which counts them."""
        return (self._loss(self.model, batch) * example_weight).mean()


def magic(rule: str, batches: list[list[Any]]) -> tuple[NDArray[np.float64], float]:
    """Return MAGIC's scores, signed as ours, and processor time of training and all queries."""
    import torchopt
    from bergson.magic.swap import swap_parameters
    from bergson.magic.trainer import BackwardState, Trainer

    rules = {
        "SGD, momentum": lambda: torchopt.sgd(0.05, momentum=0.9),
        "AdamW": lambda: torchopt.adamw(1e-3, weight_decay=1e-2, eps_root=EPS_ROOT),
    }
    torch.manual_seed(0)
    data, tests = Batches(digits, batches), list(digits.test)[:TESTS]
    trainer, state = Trainer.initialize(Objective(digits, digits.model()), rules[rule]())
    rows, quiet = [], contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet:
        began = time.process_time()
        final = trainer.train(state, data, save_dir=folder, save_mode="all")
        for test in tests:
            end = final.to("cpu").detach_()
            end.requires_grad = True
            batch = default_collate([digits.test[test]])
            with swap_parameters(trainer.model, end.params, end.buffers) as params:
                value = trainer.model(batch, torch.ones(1))
                q = torch.autograd.grad(value, list(params.values()))
            zeros = [torch.zeros_like(t) for t in end.differentiable_tensors()[len(q) :]]
            back = BackwardState(
                dict(zip(end.params, q, strict=True)), zeros, torch.zeros_like(data.weights)
            )
            back = trainer.backward(folder, data, back, end, cleanup=False, save_mode="all")
            rows.append(-back.weight_grads.detach().double().numpy())
        took = time.process_time() - began
    return np.stack(rows), took


def beside_magic() -> None:
    try:
        import bergson.magic.trainer  # noqa: F401
    except ImportError as error:
        print(f"MAGIC: bergson cannot be imported ({error})")
        return
    print(f"digits MLP, 45 steps, {TESTS} test examples: unrolled beside MAGIC")
    for rule in RULES:
        batches = order(digits, 45, 32)
        tests = list(digits.test)[:TESTS]
        theirs, took = magic(rule, batches)
        with traced(digits, rule, batches) as run:
            began = time.process_time()
            ours = run.influence(tests, methods=("unrolled",), progress=False).scores["unrolled"]
            own = time.process_time() - began
        print(
            f"  {rule:14s} ours {own:.1f} s, MAGIC {took:.1f} s, {took / own:.1f} x; largest "
            f"difference {abs(ours - theirs).max() / abs(ours).max():.1e} of the largest score, "
            f"Pearson {np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]:.6f}",
            flush=True,
        )


def main() -> None:
    torch.set_num_threads(1)
    parts = {"counterfactual": counterfactual, "unrolled": unrolled, "magic": beside_magic}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
