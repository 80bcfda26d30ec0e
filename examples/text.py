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

from examples import gallery
from examples.texts import Text, dbpedia, docstrings, vocabulary, words
from replay import Influence, Replay, Task, report
from tracer import TracingOptimizer, collate_with_ids, with_ids

LENGTH = 32  # words of a text that are read
WORDS = 1500
WIDTH = 32
SHOWN = 3  # proponents, and opponents, of a test text
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


def split(texts: list[Text]) -> tuple[dict[str, Text], dict[str, Text]]:
    """Return training and test texts by name; every fifth is for the test."""
    named: dict[str, Text] = {}
    for text in texts:
        named.setdefault(text.name, text)
    train = {name: text for n, (name, text) in enumerate(named.items()) if n % 5}
    return train, {name: text for name, text in named.items() if name not in train}


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


def chosen_of(task: Task, judgements: dict[str, tuple[float, bool]]) -> list[str]:
    """Return a test text of each class: the hardest and a typical one, in turns."""
    chosen = []
    for n, label in enumerate(sorted({text.label for text in task.test.values()})):
        some = [name for name in judgements if task.test[name].label == label]
        some.sort(key=lambda name: judgements[name][0])
        chosen.append(some[len(some) // 2 if n % 2 else -1])
    return chosen


def quoted(text: Text) -> str:
    """Return a text as a cell of a table, its first 100 characters."""
    cut = text.text if len(text.text) <= 100 else text.text[:97] + "..."
    for sign in "&\\`*_|<>[]":
        cut = cut.replace(sign, f"&#{ord(sign)};")
    return cut


def rows_of(task: Task, influence: Influence, name: str, k: int) -> list[list[object]]:
    """Return the rows of a test text's table: proponents, then opponents."""
    rows: list[list[object]] = []
    for side in (influence.top, influence.bottom):
        for train_id, score in zip(*side(name, method="ideal", k=k), strict=True):
            found = task.train[train_id]
            rows.append(
                [f"{score:+.3f}".replace("-", "−"), found.label, f"`{train_id}`", quoted(found)]
            )
    return rows


def early(run: Replay, influence: Influence, k: int) -> str:
    """Return how many of the strongest examples were in the first batch."""
    sides = (influence.top, influence.bottom)
    listed = {
        i for name in influence.test_ids for s in sides for i in s(name, method="ideal", k=k)[0]
    }
    first = listed & set(run.log.batch_ids(0))
    return (
        f"Of the {len(listed)} training texts below, {len(first)} were in the batch of the first "
        f"step; of all {len(influence.train_ids):,}, {len(set(run.log.batch_ids(0)))} were."
    )


def text_of(
    run: Replay, influence: Influence, judgements: dict[str, tuple[float, bool]], epochs: int
) -> str:
    """Return the page's part: what was computed, and a table for each test text."""
    task = run.task
    right = sum(found for _, found in judgements.values()) / len(judgements)
    terms = influence.completeness
    sums = {method: float(terms[method]["data"].mean()) for method in terms}
    sums["measured"] = float(terms["ideal"]["measured"].mean())
    shown = {name: gallery.written(value) for name, value in sums.items()}
    pearson = influence.agreement(progress=False).get(("tracin", "ideal"), "pearson")
    parts = [
        f"{len(task.train):,} training and {len(task.test):,} test texts, {epochs} epochs, "
        f"{len(influence.steps):,} steps of AdamW; {right:.0%} of the test texts are classified "
        "rightly.",
        f"Over {len(influence.test_ids)} test texts, all scores of `tracin` add up to "
        f"{shown['tracin']} nats on average and those of `ideal` to {shown['ideal']}; "
        f"{shown['measured']} were measured. Pearson's correlation of the two methods: median "
        f"{pearson.median:.3f}.",
        early(run, influence, SHOWN),
    ]
    for name in influence.test_ids:
        loss, found = judgements[str(name)]
        text = task.test[name]
        verdict = "classified rightly" if found else "classified wrongly"
        parts.append(
            f"### `{name}`\n\n{text.label}, loss {loss:.3g}, {verdict}: *{quoted(text)}*\n\n"
            + gallery.table(
                ["nats", "class", "where", "text"], rows_of(task, influence, str(name), SHOWN)
            )
        )
    return "\n\n".join(parts)


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
        sides = split(docstrings()[:: count or 1])
    else:
        sides = tuple(
            {f"{part} {n}": t for n, t in enumerate(dbpedia(folder / f"{part}.csv"))}
            for part in ("train", "test")
        )
    task = text_task(*sides)
    log = out / "logs" / "text.h5"
    log.parent.mkdir(parents=True, exist_ok=True)
    model = train(task, log, epochs=epochs)
    judgements = judged(task, model)
    chosen = chosen_of(task, judgements)[:tests]
    run = Replay(log, task)
    influence = run.influence(chosen, methods=("tracin", "ideal"))
    click.echo(f"Python {sys.version.split()[0]}, {len(task.train)} training texts")
    study = report.Study(influence, task=task, run=report.run_facts(influence))
    report.write(study, out / "text.html", overwrite=True)
    gallery.publish(page or out, "text", text_of(run, influence, judgements, epochs), {})


if __name__ == "__main__":
    main()
