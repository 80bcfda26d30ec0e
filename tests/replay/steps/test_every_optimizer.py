"""Training in float32 with each of torch's optimizers: bitwise the untraced one, each step proven.

Every option that changes arithmetic stands in a row. ``lr`` is scheduled, gradients are clipped,
and the log begins with a step or in the middle of the run.
"""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay
from tests.helpers import rules
from tests.helpers.comparing import replayed, same
from tests.helpers.rules import O, Rule, in_dtype, trace, untraced
from tracer import TracingOptimizer
from tracer.errors import MismatchError, PrecisionWarning

T = torch.tensor
ALONE, TOGETHER, FUSED = {"foreach": False}, {"foreach": True}, {"fused": True}
DECAY, UP = {"weight_decay": 0.1}, {"maximize": True}
DECOUPLED = {**DECAY, "decoupled_weight_decay": True}
CAPTURED = {"capturable": True, **TOGETHER}
MUON = {"adjust_lr_fn": "match_rms_adamw", **DECAY}
OPTIONS = {
    O.SGD: [{}, {"momentum": 0.9, "nesterov": True, **UP}, TOGETHER, FUSED, {"lr": T(0.1)},
            {"momentum": 0.8, "dampening": 0.3, **DECAY}],
    O.Adam: [ALONE, TOGETHER, FUSED, {"lr": T(0.01)}, {"amsgrad": True, **UP}, CAPTURED, DECOUPLED],
    O.AdamW: [DECAY, {**FUSED, **UP}, {**TOGETHER, **DECAY}, {"lr": T(0.01), **FUSED}],
    O.RMSprop: [{"momentum": 0.9, "centered": True}, {**TOGETHER, **DECAY}, UP, CAPTURED],
    O.Adagrad: [{"lr_decay": 0.1}, TOGETHER, {**FUSED, **DECAY}, UP],
    O.NAdam: [ALONE, TOGETHER, {**DECOUPLED, **UP}, {"lr": T(0.01)}, CAPTURED],
    O.RAdam: [ALONE, TOGETHER, {**DECOUPLED, **UP}, {"lr": T(0.01)}, CAPTURED],
    O.Adamax: [ALONE, TOGETHER, {**DECAY, **UP}, {"lr": T(0.01)}, CAPTURED],
    O.Adadelta: [ALONE, TOGETHER, {**DECAY, **UP}, {"lr": T(0.3)}, CAPTURED],
    O.Adafactor: [{"lr": 0.1, **ALONE}, {"lr": 0.1, **TOGETHER}, {**DECAY, **UP}, {"lr": T(0.1)}],
    O.ASGD: [{"lambd": 0.3, **ALONE}, {"lambd": 0.3, **TOGETHER}, {**DECAY, **UP}, {"lr": T(0.1)},
             {"lambd": 0.3, **CAPTURED}],
    O.Rprop: [ALONE, TOGETHER, UP, {"lr": T(0.01)}, CAPTURED],
    O.Muon: [{}, {"nesterov": False}, MUON, {"lr": T(0.01), **DECAY}],
}  # fmt: skip
ROWS = [(kind, options) for kind, rows in OPTIONS.items() for options in rows]


def matrices():
    """Return a model whose parameters are matrices, a tall one and a wide one."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)
    return nn.Sequential(*layers).double()


def task_of(kind):
    """Return a task that an optimizer takes, in float32."""
    task = rules.task()
    task = dataclasses.replace(task, model=matrices) if kind is O.Muon else task
    return in_dtype(task, torch.float32)


def torch_captures_here(monkeypatch, kind):
    """Put torch's own check aside: without a GPU it takes ``capturable`` of no optimizer."""
    own = sys.modules[kind.__module__]
    monkeypatch.setattr(own, "_get_capturable_supported_devices", lambda **_: ["cpu"])


@pytest.mark.parametrize(("kind", "options"), ROWS, ids=str)
def test_training_is_bitwise_the_same_and_every_step_is_proven(
    tmp_path, monkeypatch, kind, options
):
    if options.get("capturable"):
        torch_captures_here(monkeypatch, kind)
    rule = Rule("", kind, {"lr": 0.01, **options})
    loop = {"steps": 7, "before": 2 * (len(options) % 2), "clip": 0.5, "scheduled": True}
    run = trace(tmp_path / "run.h5", rule, base=task_of(kind), snapshot_every=4, **loop)
    same(run.end, untraced(run, **loop))
    found = Replay(run.path, run.task).verify(progress=False)  # moves are those of the rule
    assert found.unsplit is None
    assert (found.steps, found.proof.proved) == (range(7), 7)  # bit for bit, by its class


KEPT_IN_FLOAT32 = [(O.NAdam, {"lr": 0.02}), (O.ASGD, {"lr": 0.03, "lambd": 0.3})]


def trained(task, kind, options, path=None):
    """Train 3 steps, then 4 more that resume the log; without one, 7 at once."""
    for steps in [range(7)] if path is None else [range(3), range(3, 7)]:
        model = task.model()
        inner = kind(model.parameters(), **options)
        how = {"resume": steps.start > 0, "snapshot_every": 1}
        within = nullcontext(inner) if path is None else TracingOptimizer(inner, model, path, **how)
        with within as optimizer:
            for t in steps:
                ids = [t, t + 1, t + 2]
                optimizer.zero_grad()
                task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
                optimizer.step(**({} if path is None else {"batch_ids": ids}))
    return model.state_dict(), inner.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "options"), KEPT_IN_FLOAT32, ids=str)
def test_a_resumed_run_keeps_numbers_in_the_dtype_that_they_had(tmp_path, kind, options, dtype):
    """Torch's ``load_state_dict`` casts them to that of the parameter."""
    task, path = in_dtype(rules.task(), dtype), tmp_path / "run.h5"
    same(trained(task, kind, options, path), trained(task, kind, options))
    found = Replay(path, task).verify(progress=False)
    assert str(found) == "steps 0:7 reproduce"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "options"), KEPT_IN_FLOAT32, ids=str)
def test_a_state_that_was_loaded_before_the_log_begins(tmp_path, kind, options, dtype):
    def settle(t, optimizer, _model):
        if t == -1:
            optimizer.load_state_dict(optimizer.state_dict())

    loop = {"before": 2, "settle": settle}
    run = trace(
        tmp_path / "run.h5", Rule("", kind, options), base=in_dtype(rules.task(), dtype), **loop
    )
    same(run.end, untraced(run, **loop))
    terms = replayed(run).terms["tracin"]
    limit = 1e-13 if dtype is torch.float64 else 0.1  # of bfloat16, that the parameters are
    assert np.abs(terms["rounding"]).max() <= limit * np.abs(terms["data"]).max()


def test_a_state_that_is_loaded_on_the_way_is_named(tmp_path):
    def settle(t, optimizer, _model):
        if t == 3:
            optimizer.load_state_dict(optimizer.state_dict())

    run = trace(tmp_path / "run.h5", Rule("", O.NAdam, {"lr": 0.02}), settle=settle, state_every=4)
    with pytest.raises(MismatchError, match=r"(?s)mu_product of '0.weight'.*state .*\(loading, "):
        Replay(run.path, run.task).verify(progress=False)


def test_signs_of_gradients_that_are_nothing_but_rounding(tmp_path):
    """Of a bias before BatchNorm: each sign of such a gradient is a whole step of Rprop's."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    task = dataclasses.replace(in_dtype(rules.task(), torch.float32), model=model)
    run = trace(tmp_path / "run.h5", Rule("", O.Rprop, {"lr": 0.01}), base=task, state_every=2)
    with pytest.warns(PrecisionWarning, match=r"(?s)because they cancel over.*  1\. Train without"):
        terms = replayed(run).terms["tracin"]
    assert np.abs(terms["rounding"]).max() <= 1e-5 * np.abs(terms["data"]).max()
    with pytest.raises(MismatchError, match=r"(?s)change of '0.bias'.*\n  1\. the dtype: this"):
        Replay(run.path, task, dtype="float64").verify(progress=False)
