"""Trace a small transformer on real text: docstrings of Python's own standard library.

    python -m examples.text                    # the library of the Python that runs this
    python -m examples.text --dbpedia FOLDER   # train.csv and test.csv of DBpedia's classes

A docstring's class is the area of the library that it comes from. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from examples import gallery, text_pages
from examples.texts import Text, dbpedia, docstrings, vocabulary, words
from replay import Replay, Task, report
from tracer import TracingOptimizer, collate_with_ids, with_ids

LENGTH = 32  # words of a text that are read
WORDS = 1500
WIDTH = 32
Batch = tuple[Tensor, Tensor]  # numbers of words, padded with 0, (b, l), and of classes, (b,)


class Classifier(nn.Module):
    """One transformer layer over the words, and the mean over those that are no padding."""

    def __init__(self, count: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(count, WIDTH, padding_idx=0)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) / WIDTH)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=2, dim_feedforward=2 * WIDTH, dropout=0.1, batch_first=True
        )
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the scores of each class, ``(b, classes)``."""
        padding = numbers == 0
        hidden = self.words(numbers) + self.places[: numbers.shape[1]]
        hidden = self.layer(hidden, src_key_padding_mask=padding)
        there = (~padding).unsqueeze(2).to(hidden.dtype)
        return self.head((hidden * there).sum(1) / there.sum(1))


def per_example_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return each text's cross-entropy in nats, ``(b,)``."""
    numbers, classes = batch
    return F.cross_entropy(model(numbers), classes, reduction="none")


def padded(numbers: dict[str, int], labels: list[str]) -> Callable[[list[Text]], Batch]:
    """Return the collate function: words to numbers, shorter texts padded with 0."""

    def collate(texts: list[Text]) -> Batch:
        rows = [[numbers.get(w, 1) for w in words(t.text)[:LENGTH]] or [1] for t in texts]
        longest = max(map(len, rows))
        classes = torch.tensor([labels.index(text.label) for text in texts])
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows]), classes

    return collate


def text_task(train: dict[str, Text], test: dict[str, Text]) -> Task:
    """Return the task; its words and classes are those of the training texts."""
    numbers = vocabulary(train.values(), WORDS)
    labels = sorted({text.label for text in [*train.values(), *test.values()]})
    return Task(
        model=lambda: Classifier(len(numbers) + 2, len(labels)),
        loss=per_example_loss,
        train=train,
        test=test,
        collate=padded(numbers, labels),
        show=lambda text: f"{text.label}: {text.text}",
    )


def train(task: Task, log: Path, *, epochs: int) -> nn.Module:
    """Train with tracing; return the model."""
    torch.manual_seed(0)
    model = task.model()
    adamw = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = DataLoader(
        *(with_ids(task.train), 32, True), collate_fn=collate_with_ids(task.collate)
    )
    with TracingOptimizer(adamw, model, log, task=task, overwrite=True) as optimizer:
        for epoch in range(epochs):
            optimizer.epoch = epoch
            for ids, batch in loader:
                optimizer.zero_grad()
                task.loss(model, batch).mean().backward()
                optimizer.step(batch_ids=ids)
    return model.eval()


@torch.no_grad()
def judged(task: Task, model: nn.Module) -> dict[str, tuple[float, bool]]:
    """Return each test text's loss, and whether its class was found."""
    names = list(task.test)
    batch = task.collate([task.test[name] for name in names])
    losses, right = task.loss(model, batch), model(batch[0]).argmax(1) == batch[1]
    return dict(zip(names, zip(losses.tolist(), right.tolist(), strict=True), strict=True))


@click.command()
@click.option("--dbpedia", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@gallery.places("text")
@click.option("--epochs", default=3, show_default=True)
@click.option("--tests", default=6, show_default=True, help="Test texts, one a class.")
@click.option("--texts", "count", type=int, help="Use every so-many-th docstring; default: all.")
def main(
    folder: Path | None, out: Path, page: Path | None, epochs: int, tests: int, count: int | None
) -> None:
    """Train, replay some test texts, and write the page."""
    if folder is None:
        sides = text_pages.split(docstrings()[:: count or 1])
    else:
        train_side, test_side = (
            {f"{part} {n}": t for n, t in enumerate(dbpedia(folder / f"{part}.csv"))}
            for part in ("train", "test")
        )
        sides = train_side, test_side
    task = text_task(*sides)
    log = out / "logs" / "text.h5"
    log.parent.mkdir(parents=True, exist_ok=True)
    model = train(task, log, epochs=epochs)
    judgements = judged(task, model)
    chosen = text_pages.chosen_of(task.test, judgements)[:tests]
    run = Replay(log, task)
    influence = run.influence(chosen, methods=("tracin", "ideal"))
    click.echo(f"Python {sys.version.split()[0]}, {len(task.train)} training texts")
    study = report.Study(influence, task=task, run=report.run_facts(influence))
    report.write(study, out / "text.html", overwrite=True)
    text = text_pages.text_of(run, influence, sides, judgements, epochs)
    gallery.publish(page or out, "text", text, {})


if __name__ == "__main__":
    main()
