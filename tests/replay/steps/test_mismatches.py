"""Gradients or optimizer state changed behind the log's back: an error that names the step."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay
from tests.helpers.cases import Case
from tests.helpers.comparing import replayed
from tests.helpers.rules import BY_NAME, trace
from tracer import TracingOptimizer
from tracer.errors import MismatchError


def norms(raised):
    """Return the two norms that a message names, of the run and of the replay."""
    return [float(x) for x in re.search(r"was (\S+) in the run and is ([\d.e-]+)", raised).groups()]


def test_weights_that_fit_to_anything_are_no_cause(tmp_path):
    """Five examples span what two classes' gradients may be; other inputs are no weights."""
    task = Case("few", lambda: nn.Linear(4, 2), dtype=torch.float32).task()
    two = {i: (x, y % 2) for i, (x, y) in task.train.items()}
    task = dataclasses.replace(task, train=two, test=two)
    torch.manual_seed(0)
    model = task.model()
    with TracingOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, tmp_path / "run.h5"
    ) as optimizer:
        x, y = task.collate([two[i] for i in range(5)])
        task.loss(model, (2 * x * (torch.rand(5, 4) > 0.5), y)).mean().backward()
        optimizer.step(batch_ids=range(5))
    with pytest.raises(MismatchError) as raised:
        Replay(tmp_path / "run.h5", task).verify(progress=False)
    assert "were weighted" not in str(raised.value)


@pytest.mark.parametrize("name", ["heavy-ball", "adam"])
def test_value_clipping_is_an_error_that_names_the_step(tmp_path, name):
    def clip(t, _optimizer, model):
        if t == 2:
            nn.utils.clip_grad_value_(model.parameters(), 0.05)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=clip)
    said = (
        r"(?s)step 2 of .*gradient norm of '.*' was [\d.e-]+ in the run and is .*clamped to 0\.05"
    )
    with pytest.raises(MismatchError, match=said):
        replayed(run)
    found = replayed(run, allow_mismatch=True)
    rounding = np.abs(found.terms["tracin"]["rounding"]).max(1)
    assert rounding[2] > 1e-6 > 1e-12 > rounding[:2].max()


@pytest.mark.parametrize("name", ["heavy-ball", "adam"])
def test_gradients_changed_without_their_norm_are_an_error(tmp_path, name):
    def turn(t, _optimizer, model):
        for parameter in model.parameters():
            parameter.grad *= 1 - 2 * (t == 2)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=turn)
    with pytest.raises(
        MismatchError, match=r"step 2 of .*differ by [\d.e-]+ of the gradient's norm"
    ):
        replayed(run)


def test_optimizer_state_cleared_in_the_middle_is_an_error(tmp_path):
    def clear(t, optimizer, _model):
        if t == 2:
            optimizer.state.clear()

    run = trace(tmp_path / "run.h5", BY_NAME["heavy-ball"], settle=clear, steps=3)
    with pytest.raises(
        MismatchError, match=r"(?s)step 2 of .*the optimizer's state was cleared before the step"
    ):
        replayed(run)


def test_gradients_made_larger_are_an_error(tmp_path):
    def double(t, _optimizer, model):
        for parameter in model.parameters():
            parameter.grad *= 1 + (t == 1)

    run = trace(tmp_path / "run.h5", BY_NAME["adam"], hook=double)
    with pytest.raises(
        MismatchError, match=r"step 1 of .*the gradient norm of group 0 was .* and is"
    ) as raised:
        replayed(run)
    applied, found = norms(str(raised.value))
    assert applied == pytest.approx(2 * found, rel=1e-3)


def test_optimizer_state_loaded_in_the_middle_is_an_error(tmp_path):
    def settle(t, optimizer, model):
        if t == 3:
            for parameter in model.parameters():
                optimizer.state[parameter]["exp_avg_sq"] *= 4

    run = trace(tmp_path / "run.h5", BY_NAME["adam"], settle=settle)
    with pytest.raises(MismatchError, match="step 3 of .* does not reproduce"):
        replayed(run)


def by_value(model):
    nn.utils.clip_grad_value_(model.parameters(), 0.02)


def each_alone(model):
    for parameter in model.parameters():
        nn.utils.clip_grad_norm_(parameter, 0.02)


@pytest.mark.parametrize("changed", [by_value, each_alone])
@pytest.mark.parametrize("name", ["nesterov", "adam", "adamw", "rmsprop", "adagrad"])
@pytest.mark.parametrize("at", [0, 2])
def test_gradients_changed_by_no_factor_are_an_error(tmp_path, name, changed, at):
    """Also where the update hides it: Adam's first step is the gradient's sign."""

    def hook(t, _optimizer, model):
        if t == at:
            changed(model)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=hook, steps=at + 1)
    with pytest.raises(MismatchError, match=rf"step {at} of .*: the gradient norm of '.*' was"):
        replayed(run)
    replayed(run, allow_mismatch=True)


def test_so_they_are_however_little(tmp_path):
    """Beyond rounding: a millionth of one parameter's gradient, in Adam's first step."""

    def shrink(t, _optimizer, model):
        model[0].weight.grad.mul_(1 - 1e-6)

    run = trace(tmp_path / "run.h5", BY_NAME["adam"], hook=shrink, steps=1)
    with pytest.raises(
        MismatchError, match="step 0 of .*: the gradient norm of '.*' was"
    ) as raised:
        replayed(run)
    applied, found = norms(str(raised.value))
    assert applied == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("name", ["heavy-ball", "adam"])
def test_so_they_are_at_a_step_with_learning_rate_0(tmp_path, name):
    def hook(t, optimizer, model):
        optimizer.param_groups[0]["lr"] = 0.0 if t == 1 else 0.01
        if t == 1:
            by_value(model)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=hook, steps=2)
    with pytest.raises(MismatchError, match="step 1 of .*: the gradient norm of '.*' was"):
        replayed(run)


@pytest.mark.parametrize("last", [True, False], ids=["at the end", "on the way"])
@pytest.mark.parametrize(
    ("name", "key"), [("adamw", "exp_avg_sq"), ("nesterov", "momentum_buffer"), ("adam", "exp_avg")]
)
def test_stored_states_are_compared(tmp_path, name, key, last):
    """A state in the log that steps with learning rate 0 hide."""

    def settle(t, optimizer, model):
        optimizer.param_groups[0]["lr"] = 0.0
        if t == 2:
            optimizer.state[next(model.parameters())][key].mul_(1.5)

    every = 100 if last else 3  # the state at the end is written by close()
    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle, steps=5, state_every=every)
    with pytest.raises(MismatchError, match=f"step {5 if last else 3} .*recomputed {key} of '0.w"):
        replayed(run)
    with pytest.raises(MismatchError, match=f"recomputed {key} of '0.weight' differs"):
        Replay(run.path, task=run.task).verify(progress=False)
    replayed(run, allow_mismatch=True)


@pytest.mark.parametrize("drawn", [None, torch.float32])
def test_a_model_that_draws_other_numbers_in_float64(tmp_path, drawn):
    """The cause is named, and each remedy works."""

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.randn(x.shape, dtype=drawn or x.dtype).to(x))

    task = Case("noisy", lambda: Noisy(4, 3), dtype=torch.float32).task()
    model = task.model()
    with TracingOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, tmp_path / "run.h5"
    ) as optimizer:
        task.loss(model, task.collate([task.train[i] for i in range(5)])).mean().backward()
        optimizer.step(batch_ids=range(5))
    Replay(tmp_path / "run.h5", task).verify(progress=False)
    run = Replay(tmp_path / "run.h5", task, dtype="float64")
    said = r"(?s)cause: this replay computes in another dtype.*1\. Leave out dtype=.*#other-random"
    with nullcontext() if drawn else pytest.raises(MismatchError, match=said):
        run.verify(progress=False)
