"""Optimizers of other packages: training bitwise the untraced one, each step proved, exact scores.

``tests/replay/steps/test_outside_rules.py`` compares their rules with references of our own.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from replay import Replay
from tests.helpers import rules
from tests.helpers.comparing import replayed, same
from tests.helpers.rules import Rule, in_dtype, trace, untraced
from tracer.errors import UnsupportedRuleError

DECAY, ALONE = {"weight_decay": 0.1}, {"foreach": False}
COUPLED = {**DECAY, **ALONE, "weight_decouple": False}
OPTIONS = {
    "lion_pytorch:Lion": [DECAY],
    "pytorch_optimizer:Lion": [DECAY, COUPLED, {**DECAY, "fixed_decay": True}],
    "pytorch_optimizer:AdaBelief": [DECAY, COUPLED],
    "pytorch_optimizer:Lamb": [DECAY, {**COUPLED, "grad_averaging": False}, {"adam": True}],
    "pytorch_optimizer:LARS": [DECAY, {**DECAY, **ALONE, "nesterov": True, "dampening": 0.3}],
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
    assert np.abs(terms["rounding"]).max() <= limit * np.abs(terms["data"]).max()


def test_an_option_that_makes_it_another_rule(tmp_path):
    kind = kind_of("pytorch_optimizer:Lion")
    run = trace(tmp_path / "run.h5", Rule("", kind, {"lr": 0.01, "cautious": True}))
    with pytest.raises(UnsupportedRuleError, match=r"(?s)Lion with cautious, .*  1\. Ask for trac"):
        replayed(run)
    assert "gradients of steps 0:6 reproduce" in str(Replay(run.path, run.task).verify())
    replayed(run, methods=("tracincp",))


def test_steps_of_soap_are_those_of_the_last_bit(tmp_path):
    """So they are refused: no replay finds them, and another order of a batch is another run."""
    kind = kind_of("pytorch_optimizer:SOAP")
    rule = Rule("", kind, {"lr": 0.01})
    run = trace(tmp_path / "run.h5", rule, steps=4)
    with pytest.raises(UnsupportedRuleError, match=r"(?s)SOAP \(it steps along eigenvectors of"):
        replayed(run)

    def last_bit(_t, _optimizer, model):
        for p in model.parameters():
            p.grad = torch.nextafter(p.grad, p.grad + torch.sign(p.detach()))

    ends = [untraced(run, steps=4, hook=hook)[0] for hook in (None, last_bit)]
    begun = run.task.model().state_dict()
    off, way = (
        sum(float((a[n] - b[n]).square().sum()) for n in begun) ** 0.5
        for a, b in (ends, (ends[0], begun))
    )
    assert off > 0.05 * way


def test_rows_are_classes_that_there_are():
    known = importlib.import_module("tracer.rules.table").OUTSIDE
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in map(kind_of, OPTIONS)}
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
