"""Optimizers of other packages: training bitwise the untraced one, each step proved, exact scores.

``tests/replay/steps/test_outside_rules.py`` compares their rules with references of our own.
"""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay
from tests.helpers import rules
from tests.helpers.comparing import replayed, same
from tests.helpers.rules import Rule, in_dtype, trace, untraced
from tracer import TracingOptimizer
from tracer.errors import UnsupportedRuleError
from tracer.rules.low_bit import dequantised

DECAY, ALONE = {"weight_decay": 0.1}, {"foreach": False}
COUPLED = {**DECAY, **ALONE, "weight_decouple": False}
OPTIONS = {
    "lion_pytorch:Lion": [DECAY],
    "pytorch_optimizer:Lion": [DECAY, COUPLED, {**DECAY, "fixed_decay": True}],
    "pytorch_optimizer:AdaBelief": [DECAY, COUPLED],
    "pytorch_optimizer:Lamb": [DECAY, {**COUPLED, "grad_averaging": False}, {"adam": True}],
    "pytorch_optimizer:LARS": [DECAY, {**DECAY, **ALONE, "nesterov": True, "dampening": 0.3}],
    "pytorch_optimizer:SOAP": [
        {},
        {**DECAY, "precondition_frequency": 2, "normalize_gradient": True},
        {"precondition_1d": True, "precondition_frequency": 3, "correct_bias": False},
        {"max_precondition_dim": 4, "shampoo_beta": 0.8},
    ],
    "prodigyopt:Prodigy": [
        {**DECAY, "lr": 1.0, "d0": 1e-3, "decouple": False, "use_bias_correction": True},
        {"lr": 1.0, "d0": 1e-3, "betas": (0.0, 0.99)},
    ],
    "schedulefree:SGDScheduleFree": [DECAY, {**ALONE, "warmup_steps": 4, "r": 1.0}],
    "schedulefree:AdamWScheduleFree": [DECAY, {**ALONE, **DECAY, "warmup_steps": 4}],
}
ROWS = [(name, options) for name, rows in OPTIONS.items() for options in rows]


def kind_of(name):
    module, _, kind = name.partition(":")
    reason = f"needs {module}: make test-integrations"
    return getattr(pytest.importorskip(module, reason=reason), kind)


def settle(_t, optimizer, _model):
    """Schedule-free optimizers step in train mode."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if hasattr(inner, "train"):
        inner.train()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "options"), ROWS, ids=str)
def test_an_optimizer_from_outside(tmp_path, name, options, dtype):
    kind = kind_of(name)
    loop = {"steps": 7, "before": 2 * (len(options) % 2), "settle": settle}
    loop["scheduled"] = "d0" not in options  # Prodigy finds its rate
    rule, base = Rule("", kind, {"lr": 0.05, **options}), in_dtype(rules.task(), dtype)
    run = trace(tmp_path / "run.h5", rule, base=base, snapshot_every=4, **loop)
    same(run.end, untraced(run, **loop))
    found = Replay(run.path, run.task).verify(progress=False)
    assert (found.unsplit, found.steps, found.proof.proved) == (None, range(7), 7)
    influence = replayed(run)
    assert influence.attributes["as_in_the_run"].endswith("factors of clipping, if any")
    terms = influence.terms["tracin"]
    limit = 1e-13 if dtype is torch.float64 else 1e-4
    limit *= 1e3 if kind.__name__ == "SOAP" else 1  # it divides by what cancels in a batch
    assert np.abs(terms["rounding"]).max() <= limit * np.abs(terms["data"]).max()


@pytest.mark.parametrize("options", [{}, {"decouple": False}, {"betas": (0.0, 0.99)}], ids=str)
def test_prodigy_with_a_group_whose_rate_is_0_at_times(tmp_path, options):
    """That group looks at no gradient, and moves on at the others' rate."""
    kind = kind_of("prodigyopt:Prodigy")

    def pause(t, optimizer, _model):
        optimizer.param_groups[1]["lr"] = float(t in {1, 2, 5})

    rule = Rule("", kind, {**DECAY, "lr": 1.0, "d0": 1e-3, **options})
    loop = {
        "groups": lambda model: [{"params": layer.parameters()} for layer in (model[0], model[2])]
    }
    loop |= {"settle": pause}
    run = trace(tmp_path / "run.h5", rule, **loop)
    same(run.end, untraced(run, **loop))
    assert str(Replay(run.path, run.task).verify(progress=False)) == "steps 0:6 reproduce"
    terms = replayed(run).terms["tracin"]
    assert np.abs(terms["rounding"]).max() <= 1e-13 * np.abs(terms["data"]).max()


def test_lion_that_forgets(tmp_path):
    kind, path = kind_of("lion_pytorch:Lion"), tmp_path / "run.h5"
    with pytest.raises(
        UnsupportedRuleError, match=r"(?s)second beta of 0 .*  1\. Train with betas"
    ):
        replayed(trace(path, Rule("", kind, {"lr": 0.01, "betas": (0.9, 0.0)})))
    run = trace(tmp_path / "signs.h5", Rule("", kind, {"lr": 0.01, "betas": (0.0, 0.0)}))
    terms = replayed(run).terms["tracin"]
    assert np.abs(terms["rounding"]).max() <= 1e-13 * np.abs(terms["data"]).max()


def test_an_option_that_makes_it_another_rule(tmp_path):
    kind = kind_of("pytorch_optimizer:Lion")
    run = trace(tmp_path / "run.h5", Rule("", kind, {"lr": 0.01, "cautious": True}))
    with pytest.raises(UnsupportedRuleError, match=r"(?s)Lion with cautious, .*  1\. Ask for trac"):
        replayed(run)
    assert "gradients of steps 0:6 reproduce" in str(Replay(run.path, run.task).verify())
    replayed(run, methods=("tracincp",))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler that torchao calls
@pytest.mark.parametrize("stored", [{"state_every": 1}, {"snapshot_every": 3}, {}], ids=str)
@pytest.mark.parametrize("bits", ["AdamW8bit", "AdamW4bit", "AdamWFp8", "Adam4bit"])
def test_moments_of_few_bits(tmp_path, bits, stored):
    """Computed in float32: parts add up to the step as far as that goes."""
    kind = getattr(pytest.importorskip("torchao.optim", reason="needs torchao"), bits)
    task, path = few_bits(), tmp_path / "run.h5"
    same(train(task, kind, path, **stored), train(task, kind, None))
    replay = Replay(path, task)
    assert str(replay.verify(progress=False)).startswith("steps 0:6 reproduce")
    influence = replay.influence([0, 1], methods=("tracin",), progress=False)
    assert influence.attributes["as_in_the_run"].startswith("the rounding of the stored momentum")
    terms = influence.terms["tracin"]
    assert np.abs(terms["rounding"]).max() <= 2e-5 * np.abs(terms["data"]).max()
    assert terms["history"].any()
    parts = sum(terms[k] for k in ("data", "regulariser", "history", "rounding", "residual"))
    assert np.abs(parts - terms["measured"]).max() <= 1e-7


def train(task, kind, path, **stored):
    """Return what two steps and then six traced ones leave behind."""
    model = task.model()
    inner = kind(model.parameters(), lr=0.01, weight_decay=0.1)
    optimizer = None
    for t in range(8):
        if t == 2 and path is not None:
            optimizer = TracingOptimizer(inner, model, path, **stored)
        ids = [t, t + 1, t + 2]
        inner.zero_grad()
        task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
        optimizer.step(batch_ids=ids) if optimizer else inner.step()
        inner.param_groups[0]["lr"].mul_(0.9)
    if optimizer:
        optimizer.close()
    held = [one for state in inner.state.values() for one in state.values()]
    return [*model.state_dict().values(), *map(dequantised, held)]


def few_bits():
    """Return a task with a parameter of 4096 elements: smaller ones are not rounded."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(14, 32, generator=generator), torch.arange(14) % 3
    data = list(zip(x, y, strict=True))

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 3))

    return dataclasses.replace(rules.task(), model=model, train=data[:12], test=data[12:])


def test_rows_are_classes_that_there_are():
    known = importlib.import_module("tracer.rules.table").OUTSIDE
    bits = [
        f"torchao.optim:{adam}{b}" for adam in ("Adam", "AdamW") for b in ("8bit", "4bit", "Fp8")
    ]
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in map(kind_of, [*OPTIONS, *bits])}
    assert names == known.keys()


def test_schedule_free_averages_are_looked_at_on_the_way(tmp_path):
    """What is traced is ``y``, at which gradients are taken; ``eval()`` puts the average there."""
    kind = kind_of("schedulefree:AdamWScheduleFree")

    def look(t, optimizer, model):
        settle(t, optimizer, model)
        if t == 3:
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.eval()
            assert not all(map(torch.equal, before, model.parameters()))
            optimizer.train()

    run = trace(tmp_path / "run.h5", Rule("", kind, {"lr": 0.02}), settle=look)
    assert str(Replay(run.path, run.task).verify(progress=False)) == "steps 0:6 reproduce"
    terms = replayed(run).terms["tracin"]
    assert np.abs(terms["rounding"]).max() <= 1e-13 * np.abs(terms["data"]).max()
