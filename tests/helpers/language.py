"""A small language model with the interface of transformers, sequences, and collators."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

DRAW = torch.Generator().manual_seed(0)
COLUMNS = ("input_ids", "label")
WORDS = [
    {"input_ids": torch.randint(2, 9, (3 + k % 4,), generator=DRAW), "label": k % 3, "text": "no"}
    for k in range(12)
]


class Reader(nn.Module):
    """Has a logit for each word and class."""

    def __init__(self, *, whole):
        super().__init__()
        torch.manual_seed(1)
        self.words, self.head, self.whole = nn.Embedding(9, 5), nn.Linear(5, 9), whole

    def forward(self, input_ids, attention_mask=None):
        there = 1 if attention_mask is None else attention_mask[..., None]
        logits = self.head(torch.tanh(self.words(input_ids) * there).cumsum(1))
        return SimpleNamespace(logits=logits[:, -1, :3] if self.whole else logits)


def padded(examples, *, left=False, width=6):
    assert all("text" not in example for example in examples)
    words = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(words, -100)
    for row, example in enumerate(examples):
        n = len(example["input_ids"])
        place = slice(width - n, None) if left else slice(n)
        words[row, place] = labels[row, place] = torch.as_tensor(example["input_ids"])
    return {"input_ids": words, "labels": labels}


def with_mask(examples, *, left=False):
    width = max(len(example["input_ids"]) for example in examples)
    batch = padded(examples, left=left, width=width)
    return {**batch, "attention_mask": (batch["labels"] != -100).long()}


def classes(examples):
    labels = torch.tensor([example["label"] for example in examples])
    return {**padded(examples), "labels": labels}


def masked(examples, *, left=False):
    """As a masked language model's collator: which words count is drawn at random."""
    batch = with_mask(examples, left=left)
    drawn = (torch.rand(batch["labels"].shape) < 0.5) & (batch["labels"] != -100)
    batch["labels"] = torch.where(drawn, batch["labels"], -100)
    batch["input_ids"] = torch.where(drawn, 1, batch["input_ids"])
    return batch
