"""Tiny models, data and tasks for transformers' Trainer; nothing is downloaded."""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from replay import Task
from tracer.integrations.transformers import trace

WORDS = 40
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}


def sequences(lengths):
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(2, WORDS, (n,), generator=draw).tolist(),
            "label": n % 3,
            "text": "a column that the model does not take",
        }
        for n in lengths
    ]


PADDED = sequences([4 + k % 6 for k in range(20)])
FULL = sequences([6] * 20)


def padded(examples):
    width = max(len(e["input_ids"]) for e in examples)
    words = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(words, -100)
    for row, example in enumerate(examples):
        n = len(example["input_ids"])
        words[row, :n] = labels[row, :n] = torch.tensor(example["input_ids"])
    return {"input_ids": words, "attention_mask": (labels != -100).long(), "labels": labels}


def classes(examples):
    batch = padded(examples)
    return {**batch, "labels": torch.tensor([e["label"] for e in examples])}


def masked(examples):
    """As a masked language model's collator: which words count is drawn at random."""
    batch = padded(examples)
    drawn = (torch.rand(batch["labels"].shape) < 0.5) & (batch["labels"] != -100)
    batch["labels"] = torch.where(drawn, batch["labels"], -100)
    batch["input_ids"] = torch.where(drawn, 1, batch["input_ids"])
    return batch


def language_model(layers=2):
    set_seed(1)
    sizes = {"n_layer": layers, "n_head": 2, "n_embd": 32, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, bos_token_id=0, eos_token_id=1, **sizes))


def classifier(labels=3):
    set_seed(1)
    config = BertConfig(vocab_size=WORDS, intermediate_size=32, num_labels=labels, **SIZES)
    return BertForSequenceClassification(config)


def masked_model():
    set_seed(1)
    return BertForMaskedLM(BertConfig(vocab_size=WORDS, intermediate_size=32, **SIZES))


def token_means(logits, labels):
    each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return each.sum(1) / (labels != -100).sum(1).clamp(min=1)


def logits(model, batch, autocast):
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    how = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with how:
        found = model(**given).logits
    return found.float() if autocast else found


def next_words(model, batch, *, autocast=False):
    return token_means(logits(model, batch, autocast)[:, :-1], batch["labels"][:, 1:])


def sums_in_bf16(model, batch):
    """Return sums over rows of tokens: with their weight, 1 / N, all bits are the Trainer's."""
    half = next(model.parameters()).dtype == torch.float32
    found, labels = (
        logits(model, batch, half),
        nn.functional.pad(batch["labels"], (0, 1), value=-100),
    )
    rows = found.flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(*rows, reduction="none").view(len(labels), -1).sum(1)


def one_each(inputs):
    return torch.ones(len(inputs["labels"]))


def hidden_words(model, batch):
    return token_means(logits(model, batch, False), batch["labels"])


def right_class(model, batch):
    return nn.functional.cross_entropy(
        logits(model, batch, False), batch["labels"], reduction="none"
    )


CAUSAL = Task(language_model, next_words, PADDED, PADDED, collate=padded)
CAUSAL_FULL = Task(language_model, next_words, FULL, FULL, collate=padded)
CAUSAL_BF16 = Task(language_model, sums_in_bf16, PADDED, PADDED, collate=padded)
CLASSES = Task(classifier, right_class, PADDED, PADDED, collate=classes)
MASKED = Task(masked_model, hidden_words, PADDED, PADDED, collate=masked)


def trainer(task, folder, *, callbacks=None, data=None, **settings):
    known = {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "learning_rate": 1e-3,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return Trainer(
        model=task.model(),
        args=TrainingArguments(**{**known, **settings}),
        train_dataset=task.train if data is None else data,
        eval_dataset=task.train[:4],
        data_collator=task.collate,
        callbacks=callbacks,
    )


def traced(task, folder, log, *, resume=None, how=None, **settings):
    one = trainer(task, folder, **settings)
    trace(one, log, task=task, **(how or {}))
    one.train(resume_from_checkpoint=resume)
    return one


def untraced(task, folder, **settings):
    one = trainer(task, folder, **settings)
    one.train()
    return one


def same_bits(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
