"""What a replay says when something does not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from tests.helpers.cases import Case, cross_entropy, mlp
from tests.helpers.replaying import TASK, changed, influence, trained
from tracer import TracingSGD
from tracer.errors import InputError, LogError, MismatchError, NonFiniteError, TaskError


@pytest.mark.filterwarnings("ignore:.*is closed without a step")
def test_log_without_steps(path):
    trained(path, TASK, steps=0)
    with pytest.raises(LogError, match="run.h5 holds no complete step"):
        Replay(path, task=TASK)


def test_no_task(path):
    trained(path, TASK)
    with pytest.raises(TaskError, match=r"run.h5 names no task; pass one: task= \(--task"):
        Replay(path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: mlp().double()[:4], "task.model() has no parameter '4.weight'"),
        (
            lambda: nn.Sequential(nn.Linear(4, 7)).double(),
            "parameter '0.weight' has shape (7, 4) in task.model() and (6, 4) in",
        ),
        (
            lambda: nn.Sequential(*mlp(), nn.Linear(3, 3)).double(),
            "task.model() has the parameter '5.weight', which",
        ),
        (lambda: "model", "task.model() must return an nn.Module, found str"),
    ],
)
def test_model_that_differs_from_the_log(path, model, message):
    trained(path, TASK)
    with pytest.raises(TaskError, match=re.escape(message)):
        Replay(path, task=changed(TASK, model=model))


MEAN = r"returned one number for 1 example, .* of shape \(1,\).\n  1\. .*reduction='none'.*\n  2\. "


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: cross_entropy(m, b).mean(), MEAN),
        (lambda m, b: m(b[0]), "returned shape"),
        (lambda m, b: cross_entropy(m, b).tolist(), "must return a tensor of shape"),
        (lambda m, b: cross_entropy(m, b)[:1], "one ID and one loss for each example"),
    ],
)
def test_loss_of_the_wrong_shape(path, loss, message):
    trained(path, TASK)
    with pytest.raises(TaskError, match=message):
        influence(path, changed(TASK, loss=loss))


def test_one_number_for_one_example(path):
    """A loss that squeezes is right for all batches but those of one; the remedy is named."""
    task = changed(TASK, loss=lambda m, b: cross_entropy(m, b)[:, None].squeeze())
    Case("ones", mlp, batches=[[0], [3]]).trace(path)
    said = r"returned one number for 1 example, .* \(1,\)(?s:.*)\n  3\. .*squeeze\(-1\)"
    with pytest.raises(TaskError, match=said):
        Replay(path, task).verify(progress=False)
    right = changed(TASK, loss=lambda m, b: cross_entropy(m, b)[:, None].squeeze(-1))
    Replay(path, right).verify(progress=False)


def test_a_collate_without_a_batch(path):
    trained(path, TASK)
    run = Replay(path, changed(TASK, collate=lambda examples: None))
    for ask in (lambda: run.verify(progress=False), lambda: run.drops([0], progress=False)):
        with pytest.raises(TaskError, match="task.collate returned None for a list of . example"):
            ask()


def test_a_penalty_that_reads_what_a_forward_left(path):
    """As the older spectral_norm leaves a weight, with its graph."""
    model = lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3)))  # noqa: E731
    task = Case("norm", model, dtype=torch.float32).trace(path)
    task = changed(task, penalty=lambda m: m[0].weight.square().sum())
    with pytest.raises(TaskError, match="task.penalty cannot be .*\n  1. .*weight_orig"):
        Replay(path, task).verify(progress=False)


def test_own_losses_that_depend_on_whether_gradients_are_taken(path):
    task = changed(TASK, loss=lambda m, b: (1 + torch.is_grad_enabled()) * cross_entropy(m, b))
    trained(path, task)
    with pytest.raises(TaskError, match="step 0: the losses .*\n.*\n  2. Let the forward not dep"):
        Replay(path, task).self_influence(progress=False)


def test_ids_fewer_than_the_losses(path):
    task = TASK
    model = task.model()
    with TracingSGD(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as optimizer:
        task.loss(model, task.collate([task.train[i] for i in (0, 1, 2)])).mean().backward()
        optimizer.step(batch_ids=[0, 1])
    with pytest.raises(MismatchError, match="step 0 of .*run.h5 does not reproduce"):
        influence(path, task)


def test_missing_train_id(path):
    trained(path, TASK)
    fewer = {k: v for k, v in TASK.train.items() if k != 3}
    with pytest.raises(TaskError, match="step 1 used the training example 3, which task.train"):
        influence(path, changed(TASK, train=fewer))


def test_nan_loss_names_step_and_example(path):
    def loss(model, batch):
        return torch.where(batch[1] == batch[1], cross_entropy(model, batch), 0) / (
            (batch[0][:, 0] != TASK.train[4][0][0]).to(batch[0])
        )

    trained(path, TASK)
    task = changed(TASK, loss=loss, measure=cross_entropy)
    with pytest.raises(NonFiniteError, match="step 2: task.loss of example 4 is inf"):
        influence(path, task, methods=("tracin", "ideal"))
    with pytest.raises(NonFiniteError, match="train set, .*: task.loss of example 4 is inf"):
        influence(path, task)  # tracincp looks at every training example


def test_nan_gradient_names_step_and_example(path):
    def loss(model, batch):
        hit = batch[0][:, 0] == TASK.train[4][0][0]
        return cross_entropy(model, batch) + torch.where(hit, model(batch[0])[:, 0] * 0, 1).sqrt()

    trained(path, TASK)
    with pytest.raises(NonFiniteError, match="step 2: the gradient of training example 4 is NaN"):
        influence(path, changed(TASK, loss=loss, measure=cross_entropy))


class Float32Only(nn.Module):
    """Casts inside, as models in the wild do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x.to(torch.float32))


def test_model_that_cannot_run_in_float64(path):
    task = Case("cast", Float32Only, dtype=torch.float32).trace(path)
    with pytest.raises(TaskError, match='float64 failed.*values="model" \\(--values model\\)'):
        influence(path, task)
    found = Replay(path, task=task, values="model").influence([0], progress=False)
    assert np.isfinite(found.scores["ideal"]).all()


def test_random_measure(path):
    trained(path, TASK)
    noisy = changed(TASK, measure=lambda m, b: cross_entropy(m, b) + torch.rand(len(b[1])))
    with pytest.raises(TaskError, match="random in eval mode"):
        influence(path, noisy)


def test_measure_without_gradient(path):
    trained(path, TASK)
    task = changed(TASK, measure=lambda m, b: m(b[0]).argmax(1).double())
    with pytest.raises(TaskError, match="task.measure has no gradient"):
        influence(path, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("trak",)}, "methods are any of tracin, ideal, tracincp"),
        (
            {"methods": ("self",)},
            "a table over training examples, not over pairs: call run",
        ),
        ({"methods": ()}, "methods are any of"),
        ({"train_ids": [0, 77]}, "the training set has no example 77"),
        ({"train_ids": [0, 0]}, "training ID 0 is listed twice"),
        ({"checkpoints": 0}, "checkpoints must be at least 1"),
        ({"checkpoints": [9]}, "different steps from 0 to 3 of this run, found step 9"),
        ({"checkpoints": "epoch"}, 'a list of steps, "epochs" or "all"'),
        ({"checkpoints": "epochs"}, "set optimizer.epoch = epoch in the training loop"),
    ],
)
def test_bad_arguments(path, options, message):
    trained(path, TASK)
    with pytest.raises(InputError, match=re.escape(message)):
        influence(path, TASK, **options)


def test_unknown_test_id(path):
    trained(path, TASK)
    with pytest.raises(InputError, match="the test set has no example 99"):
        Replay(path, task=TASK).influence([99])


@pytest.mark.parametrize("memory", ["", "big", "-1", 0])
def test_memory_that_is_no_size(path, memory):
    trained(path, TASK)
    with pytest.raises(InputError, match="memory is a size such as"):
        Replay(path, task=TASK, memory=memory)


class Drawing(nn.Linear):
    """Draws noise in float32, whatever it is given."""

    def forward(self, x):
        return super().forward(x) + super().forward(torch.randn(x.shape) if self.training else x)


@pytest.mark.parametrize("asked", ["self", "unrolled"])
def test_noise_of_one_dtype(path, asked):
    """A model that draws it in float32 does not run in float64."""
    examples = [(torch.full((4,), k / 9), torch.tensor(k % 2)) for k in range(9)]
    trained(path, task := Task(lambda: Drawing(4, 2), cross_entropy, examples, examples[:2]))
    ask = {
        "self": lambda run: run.self_influence(progress=False),
        "unrolled": lambda run: run.influence([0], methods="unrolled", progress=False),
    }[asked]
    said = r'step \d: evaluating task.loss in float64 failed .*values="model" .*dtype=x.dtype'
    with pytest.raises(TaskError, match=said):
        ask(Replay(path, task))
    ask(Replay(path, task, values="model"))
