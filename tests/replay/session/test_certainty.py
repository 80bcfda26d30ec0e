"""A measured value that is no function of the weights is an error, for one test ID as for many."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from replay import Replay, Task
from tests.helpers.alone import trace
from tests.helpers.cases import cross_entropy
from tracer.errors import TaskError

X = torch.randn(12, 4, generator=torch.manual_seed(0))
DATA = [(x, k % 3) for k, x in enumerate(X)]
METHODS = ("tracin", "ideal", "tracincp")


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


class Odd(nn.Module):
    """Does something odd in eval mode."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how, self.is_training = linear(), how, True

    def forward(self, x):
        y = self.layer(x)
        return y if self.training else y * (1 + self.how())


def drawn():
    return float(np.random.rand())  # noqa: NPY002


def dropout_of_its_own():
    """A flag of its own says that it is training."""
    return nn.functional.dropout(torch.ones(3), 0.5, training=True)


ODD = {
    "numpy": (drawn, "random in eval mode"),
    "random": (random.random, "random in eval mode"),
    "torch": (lambda: torch.rand(()), "random in eval mode"),
    "dropout": (dropout_of_its_own, "random in eval mode.*\n.*a train method of your own"),
    "grad": (torch.is_grad_enabled, "where gradients are taken .*another function.\n.*is_grad_ena"),
}


def adding(draw):
    def collate(examples):
        x, y = default_collate(examples)
        return x + draw(x), y

    return collate


class Drawing:
    """Draws one of its examples anew each time."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return X[i] + (torch.rand(4) if i == 1 else 0), i % 3


def check(tmp_path, task, ids, message, methods=("tracin",)):
    trace(tmp_path / "run.h5", Task(task.model, task.loss, DATA, DATA))
    for ask in (
        lambda run: run.influence(ids, methods=methods, checkpoints=[0], progress=False),
        lambda run: run.drops(ids, progress=False),
    ):
        with pytest.raises(TaskError, match=message):
            ask(Replay(tmp_path / "run.h5", task))


@pytest.mark.parametrize("ids", [[1], [0, 1, 2]])
@pytest.mark.parametrize("kind", ODD)
def test_models(tmp_path, kind, ids):
    how, message = ODD[kind]
    check(tmp_path, Task(lambda: Odd(how), cross_entropy, DATA, DATA), ids, message)


@pytest.mark.parametrize("ids", [[1], [0, 1, 2]])
@pytest.mark.parametrize(
    "draw",
    [torch.rand_like, lambda x: float(np.random.rand())],  # noqa: NPY002
)
def test_a_random_collate(tmp_path, draw, ids):
    task = Task(linear, cross_entropy, DATA, DATA, collate=adding(draw))
    check(tmp_path, task, ids, "test set: example . was collated twice and gave two batches")


@pytest.mark.parametrize("ids", [[1], [0, 1, 2]])
def test_random_data(tmp_path, ids):
    task = Task(linear, cross_entropy, DATA, Drawing())
    check(tmp_path, task, ids, "test set: example 1 was loaded twice and gave other data")


def test_training_data_of_a_heuristic(tmp_path):
    trace(tmp_path / "run.h5", Task(linear, cross_entropy, DATA, DATA))
    run = Replay(tmp_path / "run.h5", Task(linear, cross_entropy, Drawing(), DATA))
    with pytest.raises(
        TaskError,
        match=r"(?s)train set: example 1 was loaded twice.*3\. Or leave out .*--method tracin",
    ):
        run.influence([0], methods=("tracincp",), checkpoints=[0], progress=False)
