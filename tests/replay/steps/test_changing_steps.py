"""Steps whose parameters, rates, scales or weights are not those of the step before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay
from tests.helpers import reference, rules
from tests.helpers.accounts import had
from tests.helpers.cases import l1
from tests.helpers.comparing import compare
from tests.helpers.rules import BY_NAME, trace
from tracer import TracingOptimizer, open_log


def without(skipped):
    """Return a hook that takes gradients away: parameters by step."""

    def hook(t, _optimizer, model):
        for name, parameter in model.named_parameters():
            if name in skipped.get(t, ()):
                parameter.grad = None

    return hook


SKIPPED = {0: ["2.weight"], 2: ["2.weight", "0.bias"], 3: ["0.weight"]}


@pytest.mark.parametrize(
    "name", ["sgd", "dampened", "nesterov", "adam-decay", "adamw-amsgrad", "rmsprop-momentum",
             "rmsprop-centered", "adagrad"],
)  # fmt: skip
def test_parameters_without_gradient_in_some_steps(tmp_path, name):
    # k of Adam is each parameter's own, and so is the first, undampened buffer
    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=without(SKIPPED))
    compare(run, rules.clip_factors(run, None))
    with open_log(run.path) as log:
        assert log.step(2).without_gradient == {"2.weight", "0.bias"}


@pytest.mark.parametrize("name", ["nesterov", "adam-decay"])
def test_a_step_in_which_no_parameter_has_a_gradient(tmp_path, name):
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=without({0: names, 2: names}),
                parts={"penalty": l1}, steps=4)  # fmt: skip
    compare(run, rules.clip_factors(run, None), memory=20_000, methods=("tracin",))


@pytest.mark.parametrize(
    ("name", "flag"), [("adamw-amsgrad", "amsgrad"), ("rmsprop-centered", "centered")]
)
def test_second_moments_that_rest_for_some_steps(tmp_path, name, flag):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0][flag] = t not in (1, 2)

    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle, state_every=2, steps=4)
    compare(run, rules.clip_factors(run, None), methods=("tracin",))


@pytest.mark.parametrize("name", ["dampened", "nesterov"])
@pytest.mark.parametrize("momenta", [(0, 0, 0.9, 0.8, 0, 0.5), (0.9, 0, 0, 0.9, 0.9, 0)], ids=str)
def test_momentum_that_passes_through_zero(tmp_path, name, momenta):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0]["momentum"] = momenta[t]

    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle)
    compare(run, rules.clip_factors(run, None))


def test_betas_that_move(tmp_path):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0]["betas"] = (0.95 - 0.1 * t, 0.99)

    run = trace(tmp_path / "run.h5", BY_NAME["adamw"], settle=settle)
    compare(run, rules.clip_factors(run, None))


@pytest.mark.parametrize("name", ["heavy-ball", "adam-decay", "rmsprop-momentum"])
def test_steps_with_learning_rate_zero(tmp_path, name):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0]["lr"] = 0.0 if t in (1, 2) else 0.01

    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle)
    compare(run, rules.clip_factors(run, None))


def by_kind(model):
    """Return a group of weights and one of biases with settings of its own."""
    named = list(model.named_parameters())
    weights = [p for n, p in named if "weight" in n]
    biases = [p for n, p in named if "weight" not in n]
    return [{"params": weights}, {"params": biases, "lr": 0.05, "weight_decay": 0.3}]


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "rmsprop-momentum"])
def test_groups_clipped_apart(tmp_path, name):
    def clip(t, optimizer, _model):
        for limit, group in zip((0.2, 0.05), optimizer.param_groups, strict=True):
            if t != 1:
                nn.utils.clip_grad_norm_(group["params"], limit)

    run = trace(tmp_path / "run.h5", BY_NAME[name], groups=by_kind, hook=clip)
    factors = []
    with open_log(run.path) as log:
        for t in range(len(log)):
            rows = reference.train_gradients(run.task, log, t)
            found = {}
            for limit, kind in ((0.2, "weight"), (0.05, "bias")):
                names = [n for n in rows[0] if kind in n]
                norm = sum(float(sum(r[n] for r in rows).square().sum()) for n in names) ** 0.5
                factor = 1.0 if t == 1 else min(1.0, limit / (norm + 1e-6))
                found.update(dict.fromkeys(names, factor))
            factors.append(found)
    found = compare(run, factors)
    assert found.attributes["steps_scaled_outside"] == 5


@pytest.mark.parametrize("name", ["heavy-ball", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_scaled_gradients_of_amp(tmp_path, name, clip):
    # the scaler's factor is gone when the optimizer steps, and a skipped step is no step
    task, rule = rules.task(), BY_NAME[name]
    model = task.model()
    inner = rule.kind(model.parameters(), **rule.options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    with TracingOptimizer(inner, model, tmp_path / "run.h5") as optimizer:
        for t in range(5):
            ids = [t, t + 3, t + 1]
            optimizer.zero_grad()
            loss = task.loss(model, task.collate([task.train[i] for i in ids])).mean()
            scaler.scale(loss * (torch.inf if t == 2 else 1)).backward()
            if clip:
                scaler.unscale_(optimizer)
                optimizer.clip_grad_norm_(clip)
            scaler.step(optimizer, batch_ids=ids)
            scaler.update()
    found = Replay(tmp_path / "run.h5", task=task).influence([0], progress=False)
    assert len(found.steps) == 4
    for method in ("tracin", "ideal"):
        terms = found.terms[method]
        assert np.abs(terms["rounding"]).max() <= 1e-12
        assert found.attributes["steps_scaled_outside"] == 0
        assert np.isclose(found.scores[method].sum(), terms["data"].sum(), rtol=1e-10)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_weights_of_unequal_micro_batches(tmp_path, name):
    task, rule = rules.task(), BY_NAME[name]
    model = task.model()
    inner = rule.kind(model.parameters(), **rule.options)
    weights = torch.tensor([0.5, 0.1, 0.0, 0.3, 0.7], dtype=torch.float64)
    path = tmp_path / "run.h5"
    run = rules.Run(rule, task, path)
    with TracingOptimizer(inner, model, path, reduction="sum") as optimizer:
        for t in range(4):
            ids = [t, t + 3, t + 1, t, t + 5]
            optimizer.zero_grad()
            for part in (slice(0, 2), slice(2, 5)):
                losses = task.loss(model, task.collate([task.train[i] for i in ids[part]]))
                (losses * weights[part]).sum().backward()
                optimizer.observe(ids[part], weights=weights[part])
            optimizer.step()
            run.had.append({
                n: had(rule.kind, {}, inner.state[p], inner.param_groups[0], p, p.grad)
                for n, p in model.named_parameters()
            })  # fmt: skip
    compare(run, rules.clip_factors(run, None))
