"""What a causal language model minimises where the summed loss is divided by the labels' count."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tests.helpers.cases import Attention
from tracer import TracingOptimizer

LENGTHS = (6, 4, 5, 3)


class Causal(nn.Module):
    """Returns its logits in an object."""

    def __init__(self):
        super().__init__()
        self.inside = Attention()

    def forward(self, tokens):
        return SimpleNamespace(logits=self.inside(tokens))


def model():
    torch.manual_seed(0)
    return Causal()


def example(k, length):
    tokens = torch.randint(0, 7, (6,), generator=torch.Generator().manual_seed(k))
    labels = torch.where(torch.arange(6) < length, tokens, -100)
    return {"input_ids": tokens, "labels": labels}


def tokens_of(model, batch):
    """Return the loss of each token, as docs/task.md has it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=batch.get("half", False)):
        logits = model(batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return F.cross_entropy(logits.mT.float(), labels, ignore_index=-100, reduction="none")


def trainer_loss(model, batch):
    labels = batch["labels"]
    return len(labels) * tokens_of(model, batch).sum(1) / (labels != -100).sum()


def mean_loss(model, batch):
    return tokens_of(model, batch).sum(1) / (batch["labels"][:, 1:] != -100).sum(1)


def traced(path, half, lengths):
    """Train as the Trainer does; return a task without its loss."""
    data = [example(k, lengths[k % 4]) for k in range(12)]

    def collate(items):
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        return {**batch, "half": half}

    known = Task(model, mean_loss, data, data, collate=collate)
    network = known.model()
    adamw = torch.optim.AdamW(network.parameters(), lr=0.01)
    with TracingOptimizer(adamw, network, path) as optimizer:
        for t in range(3):
            ids = [4 * t + k for k in range(4)]
            batch = collate([data[i] for i in ids])
            optimizer.zero_grad()
            whole = tokens_of(network, batch).sum()
            (whole / (batch["labels"] != -100).sum()).backward()
            optimizer.step(batch_ids=ids)
    return known


@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), LENGTHS], ids=["alike", "lengths"])
@pytest.mark.parametrize("half", [False, True], ids=["", "autocast"])
def test_the_guide_s_loss_is_the_trainer_s(tmp_path, half, lengths):
    known = traced(tmp_path / "run.h5", half, lengths)
    task = Task(model, trainer_loss, known.train, known.test, mean_loss, collate=known.collate)
    found = Replay(tmp_path / "run.h5", task=task).verify(progress=False)
    assert str(found) == "steps 0:3 reproduce"


def test_the_mean_over_tokens_is_another_multiple_and_verify_says_which(tmp_path):
    task = traced(tmp_path / "run.h5", False, (6, 6, 6, 6))
    found = Replay(tmp_path / "run.h5", task=task).verify(progress=False)
    assert str(found).endswith("by 0.8333 each time: the run's loss is so many times task.loss")
