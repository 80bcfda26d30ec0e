"""Trace an MLP on scikit-learn's 1,797 handwritten digits.

    python -m examples.digits --log run.h5 --test-ids test_ids.txt
    tracin-replay --log run.h5 --test test_ids.txt

Training examples are numbered as in the data set; so are the test examples, every fifth image.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from replay import Task
from tracer import TracingSGD, with_ids

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise ImportError(
        "examples/digits.py takes its images from scikit-learn; pip install '.[examples]'"
    ) from error

Example = tuple[Tensor, int, int]  # pixels (64,) in [0, 1], digit, number of the image


def load() -> dict[int, Example]:
    """Return every image by its number."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.data / 16).float()
    return {k: (pixels[k], int(label), k) for k, label in enumerate(digits.target)}


def build_model() -> nn.Module:
    """Return the MLP 64-64-32-10."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def per_example_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return each image's cross-entropy in nats, ``(b,)``."""
    pixels, digits, _ = batch
    return F.cross_entropy(model(pixels), digits, reduction="none")


def show(example: Example) -> tuple[Tensor, str]:
    """Return how reports show an image, and how tables call it."""
    return example[0].reshape(8, 8), f"a {example[1]}"


images = load()
task = Task(
    model=build_model,
    loss=per_example_loss,
    train={k: image for k, image in images.items() if k % 5},
    test={k: image for k, image in images.items() if k % 5 == 0},
    show=show,
)


def train(log: Path, *, epochs: int, overwrite: bool) -> nn.Module:
    """Train with tracing; return the model."""
    torch.manual_seed(0)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(with_ids(task.train), batch_size=32, shuffle=True)
    with TracingSGD(sgd, model, log, task="examples.digits:task", overwrite=overwrite) as optimizer:
        for epoch in range(epochs):
            optimizer.epoch = epoch
            total = 0.0
            for ids, batch in loader:
                optimizer.zero_grad()
                losses = task.loss(model, batch)
                losses.mean().backward()
                optimizer.step(batch_ids=ids)
                total += losses.sum().item()
            click.echo(f"epoch {epoch + 1}/{epochs}: training loss {total / len(task.train):.3f}")
    return model


@torch.no_grad()
def mixed(model: nn.Module) -> dict[int, str]:
    """Return two test images of each digit, the hardest and a typical one, with their labels.

    Hard and typical images take turns, and so do the digits: the first few are a mixture.
    """
    keys = list(task.test)
    losses = task.loss(model.eval(), task.collate([task.test[k] for k in keys])).tolist()
    by_loss = [key for _, key in sorted(zip(losses, keys, strict=True))]
    chosen = {}
    for digit in range(10):
        hard, other = ([k for k in by_loss if task.test[k][1] == d] for d in (digit, 9 - digit))
        chosen[hard[-1]] = f"{digit}, the hardest"
        chosen[other[len(other) // 2]] = f"{9 - digit}, a typical one"
    return chosen


@click.command()
@click.option("--log", type=click.Path(path_type=Path), default=Path("run.h5"), show_default=True)
@click.option("--test-ids", type=click.Path(path_type=Path), default=Path("test_ids.txt"))
@click.option("--epochs", default=5, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing log.")
def main(log: Path, test_ids: Path, epochs: int, overwrite: bool) -> None:
    """Train on digits with tracing; write the IDs of 20 mixed test images."""
    model = train(log, epochs=epochs, overwrite=overwrite)
    chosen = mixed(model)
    test_ids.write_text("".join(f"{k}  # a {label}\n" for k, label in chosen.items()))
    click.echo(f"wrote {log}: every step of the run, {log.stat().st_size / 1e6:.1f} MB")
    click.echo(
        f"wrote {test_ids}: {len(chosen)} test images, the hardest and a typical one of each"
    )


if __name__ == "__main__":
    main()
