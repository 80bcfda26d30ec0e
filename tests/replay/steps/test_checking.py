"""Parameters that were touched between steps, however little, and rules that no replay divides."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replay import Replay
from replay.evaluate.state import State, Transition
from replay.steps.checking import Checks
from replay.steps.displacement import split
from replay.steps.effective_gradient import EffectiveGradient
from replay.vectors import blocks
from tests.helpers.cases import cross_entropy
from tests.helpers.replaying import TASK, changed, influence, trained
from tracer import TracingOptimizer
from tracer.errors import MismatchError, UnsupportedRuleError
from tracer.records import ParameterGroup, Step
from tracer.rules.filter import Filter

PLAIN = SimpleNamespace(coarsest=None)  # a model whose loss casts nothing


def test_changed_data_does_not_reproduce(path):
    trained(path, TASK)
    other = {k: (x + 0.1, y) for k, (x, y) in TASK.train.items()}
    with pytest.raises(
        MismatchError, match=r"(?s)step 0 of .* does not reproduce.*in this order:\n  1\. the task"
    ):
        influence(path, changed(TASK, train=other))
    found = influence(path, changed(TASK, train=other), allow_mismatch=True)
    assert np.abs(found.terms["tracin"]["rounding"]).max() > 1e-6
    assert found.attributes["allow_mismatch"] == 1
    assert "steps that do not reproduce" in repr(found)
    strict = influence(path, TASK)
    assert strict.attributes["allow_mismatch"] == 0
    assert "steps that do not reproduce" not in repr(strict)


def test_parameters_touched_between_steps(path):
    def clamp(t, model, _):
        if t == 2:
            with torch.no_grad():
                model[0].weight.clamp_(-0.1, 0.1)

    trained(path, TASK, between=clamp)
    with pytest.raises(
        MismatchError, match=r"(?s)step 1 of .*'0.weight'.*clamped after the step, to 0\.1 at most"
    ):
        influence(path, TASK)


@pytest.mark.parametrize("block", [3, 1 << 16])
@pytest.mark.parametrize("element", [0, 5, -1])
@pytest.mark.parametrize("value", [0.5, torch.nan])
def test_one_element_touched_between_steps(monkeypatch, block, element, value):
    monkeypatch.setattr(blocks, "_BLOCK", block)
    w, gradient = torch.linspace(-1, 1, 8).view(2, 4), torch.ones(2, 4)
    moved = w - 0.1 * gradient
    moved.view(-1)[element] += value
    before, after = State({"w": w}, {}), State({"w": moved}, {})
    group = ParameterGroup(("w",), {"lr": 0.1}, math.nan)
    step = Step(0, None, (), (group,), math.nan, 1.0, frozenset(), frozenset())
    now = Transition(step, before, after)
    gradients = {"w": EffectiveGradient(gradient, None, w, 1.0, 0.0)}
    rule = {"w": Filter(direct=0.1)}
    divided = split(now, gradients, rule, {}, w.device)
    assert not divided.largest["w"] <= 0.4
    with pytest.raises(MismatchError, match="step 0 of run.h5 does not reproduce"):
        Checks("run.h5", True, False, PLAIN).step(now, rule, divided, {}, lambda: 1.0)
    noise, _ = Checks("run.h5", True, True, PLAIN).step(now, rule, divided, {}, lambda: 1.0)
    assert noise.keys() == {"w"}


class SignSGD(torch.optim.Optimizer):
    """Not linear in its gradients."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.01 * p.grad.sign())


OTHERS = {
    "sign": (lambda m: SignSGD(m.parameters()), r"tests\.replay\.steps\.test_checking\.SignSGD"),
}


@pytest.mark.parametrize(("make", "named"), OTHERS.values(), ids=OTHERS)
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


@pytest.mark.parametrize(("make", "named"), OTHERS.values(), ids=OTHERS)
def test_the_gradients_of_other_rules_are_verified(path, make, named):
    """Their moves are not, and verify says so."""

    def double(t, model, _):
        for parameter in model.parameters():
            parameter.grad *= 1 + (t == 2) * (parameter.dim() == 2)

    trained(path, TASK, make, wrapper=TracingOptimizer)
    found = Replay(path, task=TASK).verify(progress=False)
    said = f"the gradients of steps 0:3 reproduce; what {named} made of them is not checked, since"
    assert re.match(said, str(found))
    path.unlink()
    trained(path, TASK, make, between=double, wrapper=TracingOptimizer)
    with pytest.raises(MismatchError, match="step 2 of .* does not reproduce"):
        Replay(path, task=TASK).verify(progress=False)


class OwnRate(SignSGD):
    """Finds its learning rate by itself, as transformers' Adafactor with lr=None."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.param_groups[0]["lr"] = None


@pytest.mark.parametrize("method", ["tracincp", "tracin-sgd"])
def test_no_learning_rate_is_no_table_of_nan(path, method):
    trained(path, TASK, lambda m: OwnRate(m.parameters()), wrapper=TracingOptimizer)
    said = r"(?s)multiplies by the learning rate, and that of '0.weight' at step 0 is nan.*1\. Ask"
    with pytest.raises(UnsupportedRuleError, match=said):
        influence(path, TASK, methods=(method,))
    assert np.isfinite(Replay(path, task=TASK).drops([0], progress=False)).all()


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
    with pytest.raises(
        UnsupportedRuleError, match=r"made by LBFGS .it searches along a line.*, whose update"
    ):
        influence(path, TASK)
    run = Replay(path, task=TASK)
    assert (run.drops([0], progress=False) != 0).all()
    found = run.influence([0], methods=("tracincp",), progress=False)
    assert np.isfinite(found.scores["tracincp"]).all()


def _at(log, t):
    model = TASK.model()
    model.load_state_dict(log.parameters(t))
    return model


def test_rounding_of_one_dtype_does_not_excuse_another():
    """A bfloat16 layer stands before a float32 one that was touched."""
    w = {"a": torch.ones(4).bfloat16(), "b": torch.ones(4)}
    gradient = {name: torch.ones_like(p) for name, p in w.items()}
    moved = {name: p - 0.5 * gradient[name] for name, p in w.items()}
    moved["a"] += 0.02
    moved["b"] += 0.01
    step = Step(0, None, (), (), math.nan, 1.0, frozenset(), frozenset())
    now = Transition(step, State(w, {}), State(moved, {}))
    gradients = {n: EffectiveGradient(gradient[n], None, w[n], 1.0, 0.0) for n in w}
    rules = {name: Filter(direct=0.5) for name in w}
    divided = split(now, gradients, rules, {}, w["b"].device)
    with pytest.raises(MismatchError, match="logged change of 'b' differ"):
        Checks("run.h5", True, False, PLAIN).step(now, rules, divided, {}, lambda: 3.0)
