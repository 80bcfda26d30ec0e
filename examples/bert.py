"""Train a small BERT with transformers' Trainer, traced by one line, on docstrings.

    python -m examples.bert        # after pip install '.[integrations,report]'

The texts are those of ``examples.text``. The model begins at random and its words are those of the
training texts, so nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from examples import gallery, text_pages
from examples.texts import Text, docstrings, vocabulary
from replay import Influence, Replay, Task, plots, report, tasks
from tracer.integrations.transformers import trace

LENGTH = 32  # words of a text that are read
WORDS = 1500
WARMUP = 24  # steps


def tokenizer_of(texts: list[Text]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the commonest words of some texts."""
    numbers = {"[PAD]": 0, "[UNK]": 1, **vocabulary(texts, WORDS)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Split(Regex("[^a-z]+"), "removed")
    signs = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **signs)


def bert_task(train: dict[str, Text], test: dict[str, Text]) -> Task:
    """Return the task; its words and classes are those of the training texts."""
    tokenizer = tokenizer_of(list(train.values()))
    labels = sorted({text.label for text in [*train.values(), *test.values()]})
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        num_hidden_layers=2,
        num_labels=len(labels),
        **size,
    )

    def model() -> BertForSequenceClassification:
        set_seed(0)
        return BertForSequenceClassification(config)

    def encoded(texts: dict[str, Text]) -> dict[str, dict[str, object]]:
        return {
            name: {**tokenizer(text.text, truncation=True), "label": labels.index(text.label)}
            for name, text in texts.items()
        }

    return tasks.sequence_classification(model, encoded(train), encoded(test), tokenizer=tokenizer)


def train(task: Task, log: Path, *, epochs: int) -> torch.nn.Module:
    """Train with the Trainer, traced; return the model."""
    settings = TrainingArguments(
        str(log.parent / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        warmup_steps=WARMUP,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    names, examples = list(task.train), list(task.train.values())
    trainer = Trainer(task.model(), settings, train_dataset=examples, data_collator=task.collate)
    trace(trainer, log, task=task, ids=names, snapshot_every=1, overwrite=True)
    trainer.train()
    return trainer.model.eval()


@torch.no_grad()
def judged(task: Task, model: torch.nn.Module) -> dict[str, tuple[float, bool]]:
    """Return each test text's loss, and whether its class was found."""
    batch = task.collate(list(task.test.values()))
    losses = task.loss(model, batch)
    labels = batch.pop("labels")
    right = model(**batch).logits.argmax(1) == labels
    return dict(zip(task.test, zip(losses.tolist(), right.tolist(), strict=True), strict=True))


def figures(influence: Influence, rates: list[float]) -> dict[str, Figure]:
    """Return the page's figures: what adds up, and when the strongest examples acted."""
    hardest = influence.test_ids[0]
    return {
        "bert-adds-up.png": plots.completeness(influence),
        "bert-over-time.png": plots.over_time(influence, hardest, learning_rates=rates),
    }


@click.command()
@gallery.places("bert")
@click.option("--epochs", default=3, show_default=True)
@click.option("--tests", default=3, show_default=True, help="Test texts, one a class.")
@click.option("--texts", "count", default=4, show_default=True, help="Use every so-many-th.")
def main(out: Path, page: Path | None, epochs: int, tests: int, count: int) -> None:
    """Train, prove every step, replay some test texts, and write the page."""
    sides = text_pages.split(docstrings()[::count])
    task, log = bert_task(*sides), out / "logs" / "bert.h5"
    log.parent.mkdir(parents=True, exist_ok=True)
    judgements = judged(task, train(task, log, epochs=epochs))
    chosen = text_pages.chosen_of(sides[1], judgements)[:tests]
    run = Replay(log, task)
    proved = run.verify()
    influence = run.influence(chosen, methods=("tracin", "ideal"), by="step")
    rates = [run.log.learning_rate(t)[0] for t in range(len(run.log))]
    study = report.Study(influence, task=task, run=report.run_facts(influence))
    report.write(study, out / "bert.html", overwrite=True)
    text = (
        f"All {len(proved.steps):,} steps of the Trainer reproduce.\n\n"
        "![The terms that add up to the measured drop](bert-adds-up.png)\n\n"
        "![When the strongest examples acted](bert-over-time.png)\n\n"
    )
    text += text_pages.text_of(run, influence, sides, judgements, epochs)
    gallery.publish(page or out, "bert", text, figures(influence, rates))


if __name__ == "__main__":
    main()
