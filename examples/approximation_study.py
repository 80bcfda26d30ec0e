"""How far are the usual approximations from what a run did, and from what would have happened?

    python -m examples.approximation_study           # minutes
    python -m examples.approximation_study --full    # hours

A cell is a model, an optimizer, a learning rate, a batch size and a seed. For each one this trains
on scikit-learn's digits, scores every training example by every method, and takes the run again
without single examples and without random subsets. Each cell is kept in a file of its own: a study
that was killed goes on where it was, and several machines may share one (``--only``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader

from examples import gallery
from examples.digits import Example, load, per_example_loss
from replay import Replay, Task
from tracer import TracingOptimizer, with_ids

CHECKPOINTS: tuple[int | str, ...] = (1, 3, 10, "all")
MAIN = "tracincp 10"
TRUTHS = {  # column: what methods are compared with, and by which number
    "ideal": ("ideal", "spearman"),
    "unrolled": ("unrolled", "spearman"),
    "leave-one-out": ("leave-one-out", "spearman"),
    "LDS": ("subsets", "lds"),
}
OF_CHECKPOINTS = {  # row: what TracInCP is compared with, and by which number
    "`ideal`: Pearson": ("ideal", "pearson"),
    "`ideal`: Spearman": ("ideal", "spearman"),
    "`ideal`: of the top 10 proponents": ("ideal", "top_proponents"),
    "`unrolled`: Spearman": ("unrolled", "spearman"),
    "leave-one-out: Spearman": ("leave-one-out", "spearman"),
    "LDS": ("subsets", "lds"),
}
METHODS = ("ideal", "tracin", "tracin-sgd", MAIN, "unrolled")


@dataclass(frozen=True)
class Size:
    """How large the study is: examples, epochs and counterfactual runs of a cell, and its grid."""

    train: int
    tests: int
    epochs: int
    left_out: int
    subsets: int
    factors: tuple[float, ...]  # of each optimizer's learning rate
    batches: tuple[int, ...]
    seeds: int


DEFAULT = Size(200, 10, 4, 20, 20, (1.0, 3.0), (10, 25), 3)
FULL = Size(1000, 50, 5, 200, 100, (0.25, 0.5, 1.0, 3.0), (10, 25, 100), 3)


def mlp() -> nn.Module:
    """Return the MLP 64-32-10."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    """Return a CNN of two layers on 8 x 8 pixels."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 4 * 4, 10)),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"MLP": mlp, "CNN": cnn}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], float, dict[str, float]]] = {
    "SGD": (torch.optim.SGD, 0.2, {}),
    "momentum": (torch.optim.SGD, 0.02, {"momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, 0.004, {}),
}


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    model: str
    optimizer: str
    factor: float
    batch: int
    seed: int

    @property
    def rate(self) -> float:
        """The learning rate."""
        return OPTIMIZERS[self.optimizer][1] * self.factor

    @property
    def setting(self) -> tuple[str, str, str, int]:
        """All but the seed."""
        return self.model, self.optimizer, f"{self.rate:g}", self.batch

    @property
    def name(self) -> str:
        """The name of its files."""
        parts = self.model, self.optimizer, f"lr{self.rate:g}", f"b{self.batch}", f"s{self.seed}"
        return "-".join(parts)


def cells(size: Size) -> Iterator[Cell]:
    """Yield every cell; seeds last, so that the first third is a study of one seed."""
    for seed, model, optimizer in product(range(size.seeds), MODELS, OPTIMIZERS):
        for factor, batch in product(size.factors, size.batches):
            yield Cell(model, optimizer, factor, batch, seed)


def study_task(cell: Cell, size: Size) -> Task:
    """Return the task: training and test images are drawn by the seed."""
    images = load()
    order = np.random.default_rng(cell.seed).permutation(len(images)).tolist()
    sides: list[dict[int, Example]] = [
        {k: images[k] for k in order[: size.train]},
        {k: images[k] for k in order[-size.tests :]},
    ]
    return Task(MODELS[cell.model], per_example_loss, *sides)


def train(cell: Cell, size: Size, task: Task, log: Path) -> None:
    """Train with tracing."""
    torch.manual_seed(cell.seed)
    kind, _, options = OPTIMIZERS[cell.optimizer]
    model = task.model()
    wrapped = kind(model.parameters(), lr=cell.rate, **options)  # type: ignore[call-arg]
    loader = DataLoader(with_ids(task.train), batch_size=cell.batch, shuffle=True)
    with TracingOptimizer(wrapped, model, log, overwrite=True, snapshot_every=1) as optimizer:
        for epoch in range(size.epochs):
            optimizer.epoch = epoch
            for ids, batch in loader:
                optimizer.zero_grad()
                task.loss(model, batch).mean().backward()
                optimizer.step(batch_ids=ids)


def measured(cell: Cell, size: Size, log: Path) -> dict[str, Any]:
    """Run a cell and return its medians over test examples: by truth, method and metric."""
    task = study_task(cell, size)
    train(cell, size, task, log)
    run, tests, quiet = Replay(log, task), list(task.test), {"progress": False}
    asked = ("ideal", "unrolled", "tracin", "tracin-sgd")
    influence = run.influence(tests, methods=asked, **quiet)
    for count in CHECKPOINTS:
        found = run.influence(tests, methods=("tracincp",), checkpoints=count, **quiet)
        influence.scores[f"tracincp {count}"] = found.scores["tracincp"]
    left_out = list(task.train)[: size.left_out]
    truths = {
        "leave-one-out": run.leave_one_out(tests, left_out, **quiet),
        "subsets": run.subsets(tests, count=size.subsets, seed=cell.seed, **quiet),
    }
    tables = [influence.agreement(**quiet)]
    tables += [influence.agreement(truth=truth, **quiet) for truth in truths.values()]
    values = influence.values
    return {
        "steps": len(run.log),
        "loss": [float(values[when].mean()) for when in ("before", "after")],
        "agreement": [
            [named(row.pair[0]), row.pair[1], row.metric, row.median]
            for table in tables
            for row in table.rows
        ],
    }


def named(truth: str) -> str:
    """Return how the study calls the first of a pair."""
    return {"leave_one_out": "leave-one-out"}.get(truth, truth)


def kept(cell: Cell, size: Size, folder: Path) -> dict[str, Any]:
    """Return a cell's numbers, from its file where there is one of the same settings."""
    place, settings = folder / f"{cell.name}.json", {**asdict(cell), **asdict(size)}
    settings = json.loads(json.dumps(settings))
    if place.exists():
        found = json.loads(place.read_text())
        if found["settings"] == settings:
            return found
    log = folder / f"{cell.name}.h5"
    found = {"settings": settings, **measured(cell, size, log)}
    log.unlink()
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.replace(place)
    return found


Results = list[tuple[Cell, dict[str, Any]]]


def number(found: dict[str, Any], truth: str, method: str, metric: str) -> float:
    """Return one number of a cell: NaN where the pair was not compared."""
    if truth == method:
        return 1.0
    for first, second, name, value in found["agreement"]:
        if name == metric and {first, second} == {truth, method}:
            return float(value)
    return float("nan")


def over_seeds(results: Results, truth: str, method: str, metric: str) -> list[float]:
    """Return for each seed the mean over its cells."""
    return [
        float(np.nanmean([number(f, truth, method, metric) for c, f in results if c.seed == seed]))
        for seed in sorted({cell.seed for cell, _ in results})
    ]


def main_table(results: Results) -> str:
    """Return the table of methods and truths, by optimizer."""
    rows = []
    for optimizer in OPTIMIZERS:
        some = [(c, f) for c, f in results if c.optimizer == optimizer]
        for method in METHODS if some else ():
            numbers = [
                "—"
                if truth == method
                else gallery.interval(over_seeds(some, truth, method, metric))
                for truth, metric in TRUTHS.values()
            ]
            rows.append([optimizer, f"`{method}`", *numbers])
    return gallery.table(["optimizer", "method", *TRUTHS], rows)


def settings_table(results: Results) -> str:
    """Return how far first order is from ``ideal``, by learning rate and batch size."""
    rows = []
    for setting in dict.fromkeys(cell.setting for cell, _ in results):
        some = [(cell, found) for cell, found in results if cell.setting == setting]
        loss = np.mean([f["loss"][1] for _, f in some])
        pairs = [
            ("ideal", m, k) for m in ("tracin", "tracin-sgd") for k in ("pearson", "total_ratio")
        ]
        pairs += [("leave-one-out", m, "spearman") for m in ("ideal", "unrolled")]
        means = [float(np.mean(over_seeds(some, *pair))) for pair in pairs]
        rows.append([*setting, float(loss), *means])
    head = ["model", "optimizer", "learning rate", "batch", "test loss after"]
    head += ["`tracin`: Pearson", "total", "`tracin-sgd`: Pearson", "total"]
    return gallery.table([*head, "`ideal`: LOO", "`unrolled`: LOO"], rows)


def checkpoints_table(results: Results) -> str:
    """Return how far TracInCP is from each truth, by optimizer and number of checkpoints."""
    rows = []
    for optimizer in OPTIMIZERS:
        some = [(c, f) for c, f in results if c.optimizer == optimizer]
        names = [f"tracincp {count}" for count in CHECKPOINTS] if some else []
        for label, (truth, metric) in OF_CHECKPOINTS.items() if some else ():
            means = [gallery.interval(over_seeds(some, truth, name, metric)) for name in names]
            rows.append([optimizer, label, *means])
    head = ["optimizer", "checkpoints:", *map(str, CHECKPOINTS)]
    return gallery.table(head, rows)


def figure_of(results: Results) -> Figure:
    """Draw every method against every truth: small dots are cells, bars are their means."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, optimizer in zip(axes, OPTIMIZERS, strict=True):
        some = [(c, f) for c, f in results if c.optimizer == optimizer]
        for n, method in enumerate(METHODS):
            for x, (truth, metric) in enumerate(TRUTHS.values()):
                if truth == method or not some:
                    continue
                found = [number(f, truth, method, metric) for _, f in some]
                place = x + (n - 2) * 0.16
                axis.plot([place] * len(found), found, ".", ms=4, alpha=0.4, color=f"C{n}")
                axis.plot(place, np.nanmean(found), "_", ms=13, mew=2.5, color=f"C{n}")
            axis.plot([], [], "s", ms=6, color=f"C{n}", label=method)
        axis.axhline(0, lw=0.8, color="0.6")
        axis.set_title(optimizer, fontsize=10)
        axis.set_xticks(range(len(TRUTHS)), list(TRUTHS))
    axes[0].set_ylabel("Spearman's correlation with the column")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names))
    return figure


def text_of(results: Results, size: Size) -> str:
    """Return the page's part: what was computed, and the tables."""
    models = ", ".join(dict.fromkeys(cell.model for cell, _ in results))
    steps = sorted({found["steps"] for _, found in results})
    return (
        f"{len(results)} cells ({models}), {steps[0]} to {steps[-1]} steps. Each: {size.train} "
        f"training and {size.tests} test images, {size.left_out} leave-one-out runs, "
        f"{size.subsets} runs without half of the images. A number is the median over test images, "
        "then the mean over cells; ± is half a 95 % interval over "
        f"{len({cell.seed for cell, _ in results})} seeds by Student's t.\n\n"
        "### Spearman's correlation of each method with each truth\n\n"
        f"{main_table(results)}\n"
        "![Each method against ideal, unrolled, leave-one-out and subsets](approximation.png)\n\n"
        "### First order, by setting\n\n"
        f"{settings_table(results)}\n"
        "### TracInCP, by number of checkpoints\n\n"
        f"{checkpoints_table(results)}"
    )


@click.command()
@gallery.places("approximation_study")
@click.option("--full", is_flag=True, help="The large grid: hours.")
@click.option("--only", default="", help="Cells whose name contains this, like 'MLP-SGD'.")
def main(out: Path, page: Path | None, full: bool, only: str) -> None:
    """Run the cells that have no file yet, and write the page and its figure."""
    study(out, page or out, FULL if full else DEFAULT, only)


def study(out: Path, page: Path, size: Size, only: str = "") -> None:
    """Run a study and write its page."""
    folder = out / "cells" / ("full" if size == FULL else "default")
    folder.mkdir(parents=True, exist_ok=True)
    some = [cell for cell in cells(size) if only in cell.name]
    results: Results = []
    for n, cell in enumerate(some, start=1):
        results.append((cell, kept(cell, size, folder)))
        click.echo(f"{n}/{len(some)} {cell.name}")
    figures = {"approximation.png": figure_of(results)}
    gallery.publish(page, "approximation_study", text_of(results, size), figures)


if __name__ == "__main__":
    main()
