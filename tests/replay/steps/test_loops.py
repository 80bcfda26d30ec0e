"""Loops that programs have beside the plain one, against the forward-buffer reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from replay import Replay, Task
from replay.task import example_ids
from tests.helpers.cases import CASES
from tests.helpers.comparing import compare
from tests.helpers.rules import BY_NAME, TRAIN, Rule, clip_factors, trace
from tracer import TracingOptimizer, open_log

O = torch.optim  # noqa: E741
ADAPTIVE = ["adam-decay", "adamw-amsgrad", "rmsprop-momentum", "adagrad"]


def split(case):
    """Return a case's task with as many training examples as the rules' runs have."""
    task = case.task()
    data = [side[i] for side in (task.train, task.test) for i in example_ids(side)]
    return Task(task.model, task.loss, data[:TRAIN], data[TRAIN:])


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name in ("transformer-tied", "convolutional-groupnorm", "module-twice")],
    ids=lambda case: case.name,
)
def test_other_models(tmp_path, case, name):
    run = trace(tmp_path / "run.h5", BY_NAME[name], base=split(case), steps=4)
    compare(run, clip_factors(run, None), methods=("tracin",))


@pytest.mark.parametrize("name", ["heavy-ball", "adam", "rmsprop-momentum"])
def test_a_state_that_is_loaded_before_the_first_step_is_history(tmp_path, name):
    def load(t, optimizer, model):
        if t == 0:
            state = optimizer.state_dict()
            for one in state["state"].values():
                for key in one.keys() & {"momentum_buffer", "exp_avg"}:
                    one[key] = 2 * one[key]
            optimizer.load_state_dict(state)

    run = trace(tmp_path / "run.h5", BY_NAME[name], before=3, settle=load)
    run.first = {name: 2 * buffer for name, buffer in run.first.items()}
    found = compare(run, clip_factors(run, None))
    assert np.abs(found.terms["tracin"]["history"]).max() > 1e-6


SCHEDULERS = {
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=8),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=4),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_schedulers_that_move_more_than_the_rate(tmp_path, name, scheduler):
    made = []

    def move(t, optimizer, model):
        if t == 0:
            made.append(SCHEDULERS[scheduler](optimizer))
        else:
            made[0].step()

    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=move)
    with open_log(run.path) as log:
        seen = [log.step(t).groups[0].hyperparameters for t in range(6)]
        moving = "momentum" if name == "nesterov" else "betas.0"
        assert len({numbers["lr"] for numbers in seen}) > 3
        assert (len({numbers[moving] for numbers in seen}) > 3) == (scheduler != "cosine")
    compare(run, clip_factors(run, None))


def two(first, second):
    """Return what makes a group of each layer, with settings of its own."""
    return lambda model: [
        {"params": list(model[0].parameters()), **first},
        {"params": list(model[2].parameters()), **second},
    ]


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("heavy-ball", two({"maximize": True}, {"momentum": 0.0})),
        ("dampened", two({"dampening": 1.0}, {"nesterov": True, "dampening": 0.0})),
        ("adam", two({"amsgrad": True}, {"betas": (0.0, 0.9), "weight_decay": 0.2})),
        ("adamw", two({"maximize": True}, {"amsgrad": True, "eps": 1e-3})),
        ("rmsprop-momentum", two({"momentum": 0.0}, {"centered": True, "eps": 1e-2})),
        ("adagrad", two({"lr_decay": 0.0}, {"maximize": True})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_groups_of_different_kinds(tmp_path, name, groups):
    run = trace(tmp_path / "run.h5", BY_NAME[name], groups=groups)
    compare(run, clip_factors(run, None))


@pytest.mark.parametrize("name", ["heavy-ball", "adamw", "rmsprop"])
def test_parameters_that_join_in_the_middle(tmp_path, name):
    def unfreeze(t, optimizer, model):
        model[0].bias.requires_grad_(t >= 3)
        if t == 2:
            optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.03})

    run = trace(
        tmp_path / "run.h5",
        BY_NAME[name],
        groups=lambda model: [{"params": list(model[0].parameters())}],
        settle=unfreeze,
    )
    compare(run, clip_factors(run, None))


@pytest.mark.parametrize("kind", [O.Adam, O.AdamW, O.SGD, O.Adagrad])
def test_fused_updates(tmp_path, kind):
    options = {"momentum": 0.9} if kind is O.SGD else {}
    rule = Rule("fused", kind, {"lr": 0.02, "weight_decay": 0.1, "fused": True, **options})
    run = trace(tmp_path / "run.h5", rule)
    compare(run, clip_factors(run, None), methods=("tracin",))


@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_closures(tmp_path, name):
    """The same run, its gradients taken (and clipped) inside step()."""
    run = trace(tmp_path / "run.h5", BY_NAME[name], clip=0.3)
    rule, model = BY_NAME[name], run.task.model()
    inner = rule.kind(model.parameters(), **rule.options)
    with open_log(run.path) as log, TracingOptimizer(inner, model, tmp_path / "b.h5") as optimizer:
        for t in range(6):
            ids = log.batch_ids(t)

            def closure(ids=ids):
                optimizer.zero_grad()
                batch = run.task.collate([run.task.train[i] for i in ids])
                loss = run.task.loss(model, batch).mean()
                loss.backward()
                optimizer.clip_grad_norm_(0.3)
                return loss

            optimizer.step(closure, batch_ids=ids)
    one, other = (
        Replay(path, task=run.task).influence([0, 1], progress=False)
        for path in (run.path, tmp_path / "b.h5")
    )
    for method, scores in one.scores.items():
        assert np.abs(other.scores[method] - scores).max() <= 1e-12 * np.abs(scores).max()
    assert other.attributes["steps_scaled_outside"] == 0


def train_but(task, path, skipped, clip=math.inf):
    """Train for five batches; skip some after their backward pass, as if the loss were bad."""
    model = task.model()
    inner = O.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(5):
            model.zero_grad()
            task.loss(model, task.collate([task.train[t], task.train[t + 1]])).mean().backward()
            optimizer.clip_grad_norm_(clip)
            if t not in skipped:
                optimizer.step(batch_ids=[t, t + 1])


def test_a_batch_that_is_skipped_leaves_no_factor(tmp_path):
    """Its gradients are dropped by the model, not by the optimizer."""
    task = trace(tmp_path / "a.h5", BY_NAME["sgd"]).task
    train_but(task, tmp_path / "run.h5", {2}, clip=0.05)
    with open_log(tmp_path / "run.h5") as log:
        assert all(0.01 < log.step(t).clip_factor < 1 for t in range(4))
    found = Replay(tmp_path / "run.h5", task=task).influence([0], progress=False)
    assert found.attributes["steps_scaled_outside"] == 0


def test_a_batch_that_is_skipped_leaves_no_random_state(tmp_path):
    """Its gradients are dropped by the model, not by the optimizer."""
    (case,) = [case for case in CASES if case.name == "batchnorm-dropout"]
    task = split(case)
    train_but(task, tmp_path / "run.h5", {1, 3})
    assert Replay(tmp_path / "run.h5", task=task).verify(progress=False).steps == range(3)


def test_a_forward_of_no_gradient_before_an_observed_batch(tmp_path):
    """A look at the losses; the batch is observed before its own forward."""
    (case,) = [case for case in CASES if case.name == "batchnorm-dropout"]
    task = split(case)
    model = task.model()
    with TracingOptimizer(O.SGD(model.parameters(), lr=0.1), model, tmp_path / "run.h5") as o:
        for t in range(3):
            o.zero_grad()
            batch = task.collate([task.train[t], task.train[t + 1]])
            assert task.loss(model, batch).sum() > 0
            o.observe([t, t + 1])
            task.loss(model, batch).mean().backward()
            o.step()
    assert Replay(tmp_path / "run.h5", task=task).verify(progress=False).steps == range(3)


class Aside(nn.Module):
    """Returns something else than what its loss is taken of."""

    def __init__(self):
        super().__init__()
        self.layer, self.noise = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x):
        self.kept = self.noise(self.layer(x)).square().sum(1)
        return self.kept.detach().sqrt() * x.requires_grad_().sum()


@pytest.mark.parametrize("zeros", [False, True])
def test_a_batch_observed_after_a_backward_around_the_output(tmp_path, zeros):
    """Its random state is that of its forward, though no gradient flowed through what that gave."""

    def loss(model, batch):
        model(batch.clone())
        return model.kept

    torch.manual_seed(0)
    data = torch.randn(6, 4)
    task = Task(Aside, loss, train=data, test=data)
    model = Aside()
    with TracingOptimizer(O.SGD(model.parameters(), lr=0.1), model, tmp_path / "run.h5") as o:
        for t in range(3):
            o.zero_grad(set_to_none=not zeros)
            for k in range(2):
                loss(model, data[[t + k, t + k + 1]]).mean().div(2).backward()
                o.observe([t + k, t + k + 1])
            o.step()
    assert Replay(tmp_path / "run.h5", task=task).verify(progress=False).steps == range(3)
