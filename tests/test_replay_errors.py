"""What a replay says when something does not fit, and that it leaves things as they were."""

from __future__ import annotations

import dataclasses
import math
import random
import re

import numpy as np
import pytest
import torch
from cases import CASES, Case, cross_entropy, mlp, normalised
from torch import nn

from replay import Replay, Task, drive
from replay.checking import Checks
from replay.displacement import split
from replay.trajectory import State, Transition
from tracer import TracingOptimizer, TracingSGD
from tracer.errors import (
    InputError,
    LogError,
    MismatchError,
    NonFiniteError,
    TaskError,
    UnsupportedRuleError,
)
from tracer.filters import Filter
from tracer.records import ParameterGroup, Step


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def influence(path, task, **options):
    """Replay with two test examples."""
    return Replay(path, task=task).influence([0, 2], progress=False, **options)


def changed(task, **parts):
    return dataclasses.replace(task, **parts)


def trained(path, task, make=None, between=None, wrapper=TracingSGD, steps=3):
    """Train three steps with a hook between backward and step."""
    model = task.model()
    inner = make(model) if make else torch.optim.SGD(model.parameters(), lr=0.1)
    with wrapper(inner, model, path) as optimizer:
        for t in range(steps):
            ids = [t, t + 1, t + 2]
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            if between is not None:
                between(t, model, optimizer)
            optimizer.step(batch_ids=ids)
    return task


TASK = Case("mlp", mlp).task()


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


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: cross_entropy(m, b).mean(), "returned a scalar for a batch of"),
        (lambda m, b: m(b[0]), "returned shape"),
        (lambda m, b: cross_entropy(m, b).tolist(), "must return a tensor of shape"),
        (lambda m, b: cross_entropy(m, b)[:1], "one ID and one loss for each example"),
    ],
)
def test_loss_of_the_wrong_shape(path, loss, message):
    trained(path, TASK)
    with pytest.raises(TaskError, match=message):
        influence(path, changed(TASK, loss=loss))


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


def test_changed_data_does_not_reproduce(path):
    trained(path, TASK)
    other = {k: (x + 0.1, y) for k, (x, y) in TASK.train.items()}
    with pytest.raises(MismatchError, match="step 0 of .* does not reproduce.*Look at the task"):
        influence(path, changed(TASK, train=other))
    found = influence(path, changed(TASK, train=other), allow_mismatch=True)
    assert np.abs(found.terms["tracin"]["rounding"]).max() > 1e-6


def test_parameters_touched_between_steps(path):
    def clamp(t, model, _):
        if t == 2:
            with torch.no_grad():
                model[0].weight.clamp_(-0.1, 0.1)

    trained(path, TASK, between=clamp)
    with pytest.raises(MismatchError, match=r"step 1 of .*'0.weight'.*changed between steps"):
        influence(path, TASK)


@pytest.mark.parametrize("block", [3, 1 << 16])
@pytest.mark.parametrize("element", [0, 5, -1])
@pytest.mark.parametrize("value", [0.5, torch.nan])
def test_one_element_touched_between_steps(monkeypatch, block, element, value):
    monkeypatch.setattr(drive, "_BLOCK", block)
    w, gradient = torch.linspace(-1, 1, 8).view(2, 4), torch.ones(2, 4)
    moved = w - 0.1 * gradient
    moved.view(-1)[element] += value
    before, after = State({"w": w}, {}), State({"w": moved}, {})
    group = ParameterGroup(("w",), {"lr": 0.1}, math.nan)
    step = Step(0, None, (), (group,), math.nan, 1.0, frozenset(), frozenset())
    now = Transition(step, before, after)
    driven = {"w": drive.Drive(gradient, None, w, 1.0, 0.0)}
    rule = {"w": Filter(direct=0.1)}
    divided = split(now, driven, rule, {}, w.device)
    assert not divided.largest["w"] <= 0.4
    with pytest.raises(MismatchError, match="step 0 of run.h5 does not reproduce"):
        Checks("run.h5", True, False).step(now, rule, divided, {}, lambda: 1.0)
    lenient, _ = Checks("run.h5", True, True).step(now, rule, divided, {}, lambda: 1.0)
    assert lenient.keys() == {"w"}


class SignSGD(torch.optim.Optimizer):
    """Not linear in its gradients."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.01 * p.grad.sign())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda m: torch.optim.NAdam(m.parameters()), "NAdam"),
        (lambda m: torch.optim.Muon([p for p in m.parameters() if p.dim() == 2]), "Muon"),
        (lambda m: SignSGD(m.parameters()), r"(tests\.)?test_replay_errors\.SignSGD"),
    ],
    ids=["nadam", "muon", "sign"],
)
def test_other_rules_refuse_by_name_but_measure(path, make, named):
    trained(path, TASK, make, wrapper=TracingOptimizer)
    with pytest.raises(UnsupportedRuleError, match=f"run.h5 were made by {named}, whose update"):
        influence(path, TASK)
    run = Replay(path, task=TASK)
    drops = run.drops([0, 2], progress=False)
    value = [
        cross_entropy(_at(run.log, t), TASK.collate([TASK.test[i] for i in (0, 2)])).detach()
        for t in range(4)
    ]
    assert np.allclose(drops, -np.diff(np.stack(value), axis=0), rtol=1e-10, atol=1e-13)
    found = run.influence([0], methods=("tracincp",), progress=False)
    assert np.isfinite(found.scores["tracincp"]).all()


def test_lbfgs_is_logged_and_refuses_by_name(path):
    model = TASK.model()
    inner = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=1)
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(3):
            ids = [t, t + 1]

            def closure():
                optimizer.zero_grad()
                loss = TASK.loss(model, TASK.collate([TASK.train[i] for i in ids])).mean()  # noqa: B023
                loss.backward()
                return loss

            optimizer.step(closure, batch_ids=ids)
    with pytest.raises(UnsupportedRuleError, match="were made by LBFGS, whose update"):
        influence(path, TASK)
    run = Replay(path, task=TASK)
    assert (run.drops([0], progress=False) != 0).all()
    found = run.influence([0], methods=("tracincp",), progress=False)
    assert np.isfinite(found.scores["tracincp"]).all()


def _at(log, t):
    model = TASK.model()
    model.load_state_dict(log.parameters(t))
    return model


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


def test_everything_is_left_as_found(path):
    case = Case("batchnorm", normalised)
    built = normalised().double()
    built[1].eval()
    built[0].weight.requires_grad_(False)
    built[4].weight.grad = torch.ones_like(built[4].weight)
    task = changed(case.trace(path), model=lambda: built)
    state = {k: v.clone() for k, v in built.state_dict().items()}
    modes = [module.training for module in built.modules()]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    influence(path, task)
    assert all(torch.equal(state[k], v) for k, v in built.state_dict().items())
    assert modes == [module.training for module in built.modules()]
    assert [p.requires_grad for p in built.parameters()][:2] == [False, True]
    assert torch.equal(built[4].weight.grad, torch.ones_like(built[4].weight))
    assert not built[0]._forward_hooks
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("name", ["batchnorm-dropout", "transformer-tied", "bare-parameter"])
def test_results_do_not_depend_on_the_memory_budget_or_order(tmp_path, name):
    (case,) = [case for case in CASES if case.name == name]
    task = case.trace(tmp_path / "run.h5")
    whole = Replay(tmp_path / "run.h5", task=task).influence([0, 1, 2, 3], progress=False)
    tight = Replay(tmp_path / "run.h5", task=task, memory=20_000)
    found = tight.influence([3, 1, 0, 2], progress=False, train_ids=[9, 4, 0])
    columns = [whole.train_ids.index(z) for z in (9, 4, 0)]
    for method, scores in found.scores.items():
        expected = whole.scores[method][[3, 1, 0, 2]][:, columns]
        assert np.abs(scores - expected).max() <= 1e-12 * np.abs(expected).max()
    assert (found.terms["tracin"]["data"] != 0).any()


class BatchStatistics(nn.Module):
    """Depends on its batch in eval mode too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.top = nn.Linear(4, 3)

    def forward(self, x):
        if not self.training and len(x) == 1:
            return self.top(x)
        return self.top(self.norm(x))


def test_test_examples_that_are_not_independent_are_taken_alone(tmp_path):
    task = Case("statistics", BatchStatistics).trace(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task=task)
    together = run.influence([0, 1, 2], progress=False)
    alone = [run.influence([k], progress=False).scores for k in (0, 1, 2)]
    for method, scores in together.scores.items():
        rows = np.concatenate([row[method] for row in alone])
        assert np.abs(scores - rows).max() <= 1e-13


def test_float32_run_in_float64(tmp_path):
    task = Case("single", mlp, dtype=torch.float32).trace(tmp_path / "run.h5")
    native = Replay(tmp_path / "run.h5", task=task).influence([0, 1], progress=False)
    double = Replay(tmp_path / "run.h5", task=task, dtype=torch.float64)
    found = double.influence([0, 1], progress=False)
    for method, scores in found.scores.items():
        allowed = 1e-3 if method == "ideal" else 1e-5  # the default ideal_tolerance is 1e-3
        assert np.abs(native.scores[method] - scores).max() <= allowed * np.abs(scores).max()


def test_bfloat16_run(tmp_path):
    def loss(model, batch):
        return cross_entropy(model, (batch[0].to(next(model.parameters()).dtype), batch[1]))

    case = Case("half", mlp, loss, dtype=torch.bfloat16)
    task = case.trace(tmp_path / "run.h5")
    found = Replay(tmp_path / "run.h5", task=task).influence([0, 1], progress=False)
    assert np.isfinite(found.scores["tracin"]).all()
    identity = found.terms["ideal"]
    whole = sum(v for k, v in identity.items() if k != "measured")
    assert np.abs(whole - identity["measured"]).max() <= 1e-6


def test_sequence_data_and_negative_ids(path):
    data = list(TASK.train.values())
    task = Task(TASK.model, TASK.loss, data, data)
    trained(path, task)
    run = Replay(path, task=task)
    assert run.influence([0], progress=False).train_ids == list(range(10))
    with pytest.raises(InputError, match="no example -1"):
        run.influence([-1])


def test_rounding_of_one_dtype_does_not_excuse_another():
    """A bfloat16 layer stands before a float32 one that was touched."""
    w = {"a": torch.ones(4).bfloat16(), "b": torch.ones(4)}
    gradient = {name: torch.ones_like(p) for name, p in w.items()}
    moved = {name: p - 0.5 * gradient[name] for name, p in w.items()}
    moved["a"] += 0.02
    moved["b"] += 0.01
    step = Step(0, None, (), (), math.nan, 1.0, frozenset(), frozenset())
    now = Transition(step, State(w, {}), State(moved, {}))
    driven = {name: drive.Drive(gradient[name], None, w[name], 1.0, 0.0) for name in w}
    rules = {name: Filter(direct=0.5) for name in w}
    divided = split(now, driven, rules, {}, w["b"].device)
    with pytest.raises(MismatchError, match="logged change of 'b' differ"):
        Checks("run.h5", True, False).step(now, rules, divided, {}, lambda: 3.0)
