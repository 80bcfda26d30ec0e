"""Hyperparameters that are tensors: torch computes with them in their dtype, and so does a replay.

The model is float64, so that a number which is rounded elsewhere shows as 1e-8 of the step.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from replay import Replay
from tests.helpers.comparing import replayed
from tests.helpers.rules import O, Rule, trace

T = torch.tensor
ALONE = {"foreach": False}
OPTIONS = [
    (O.SGD, {"lr": T(0.01), "momentum": T(0.9), "dampening": T(0.3), "weight_decay": T(0.1)}),
    (O.SGD, {"lr": T(0.01), "momentum": T(0.9), "nesterov": True}),
    (O.Adam, {"lr": T(0.01)}),
    (O.Adam, {"lr": T([0.01]), "weight_decay": 0.1}),
    (O.Adam, {"lr": T(0.01, dtype=torch.bfloat16)}),
    (O.Adam, {"lr": 0.01, "betas": (T(0.3), T(0.4)), **ALONE}),
    (O.Adam, {"lr": T(0.01), "fused": True}),
    (O.AdamW, {"lr": T(0.01), "weight_decay": T(0.2), "eps": T(1e-3)}),
    (O.AdamW, {"lr": T(0.01), "betas": (T(0.9), T(0.3)), "weight_decay": T(0.2), "fused": True}),
    (O.RMSprop, {"lr": T(0.01), "alpha": T(0.3), "momentum": T(0.3)}),
    (O.Adagrad, {"lr": T(0.01), "lr_decay": T(0.1), "weight_decay": T(0.1)}),
    (O.Adagrad, {"lr": T(0.01), "lr_decay": 0.1, "fused": True}),
    (O.NAdam, {"lr": T(0.01), "decoupled_weight_decay": True, "weight_decay": 0.3}),
    (O.NAdam, {"lr": T(0.01), "foreach": True}),
    (O.RAdam, {"lr": T(0.01), "decoupled_weight_decay": True, "weight_decay": 0.3, **ALONE}),
    (O.RAdam, {"lr": T(0.01), "betas": (0.8, 0.95), "foreach": True}),
    (O.Adamax, {"lr": T(0.01)}),
    (O.Adamax, {"lr": T(0.01), "foreach": True}),
    (O.Adadelta, {"lr": T(0.3)}),
    (O.Adafactor, {"lr": T(0.3), "weight_decay": 0.3}),
    (O.Adafactor, {"lr": T(0.3), "foreach": True}),
    (O.ASGD, {"lr": T(0.03), "lambd": 0.3}),
    (O.ASGD, {"lr": T(0.03), "lambd": 0.3, "foreach": True}),
    (O.Rprop, {"lr": T(0.01)}),
]
CAPTURABLE = [
    (O.Adam, {"lr": 0.01, "foreach": True}),
    (O.AdamW, {"lr": T(0.01), "amsgrad": True, "weight_decay": 0.1}),
    (O.AdamW, {"lr": T(0.01), "betas": (T(0.3), T(0.4)), "amsgrad": True, **ALONE}),
    (O.RMSprop, {"lr": T(0.01), "momentum": 0.9, "foreach": True}),
    (O.NAdam, {"lr": 0.01}),
    (O.NAdam, {"lr": 0.01, **ALONE}),
    (O.RAdam, {"lr": 0.01, "betas": (0.8, 0.95)}),
    (O.RAdam, {"lr": T(0.01), "betas": (0.8, 0.95), **ALONE}),
    (O.Adamax, {"lr": 0.01}),
    (O.Adamax, {"lr": 0.01, **ALONE}),
    (O.Adadelta, {"lr": T(0.3)}),
    (O.ASGD, {"lr": 0.03, "lambd": 0.3}),
    (O.ASGD, {"lr": 0.03, "lambd": 0.3, **ALONE}),
    (O.Rprop, {"lr": 0.01, **ALONE}),
]


def rounding(path, kind, options):
    """Return what is left of a run's moves, as a share of them."""
    found = replayed(trace(path, Rule("", kind, options), steps=7))
    terms = found.terms["tracin"]
    return np.abs(terms["rounding"]).max() / np.abs(terms["data"]).max()


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_steps_with_tensors_are_those_of_torch(tmp_path, kind, options):
    assert rounding(tmp_path / "run.h5", kind, options) <= 1e-13


@pytest.mark.parametrize(("kind", "options"), CAPTURABLE, ids=str)
def test_so_they_are_where_the_count_is_a_tensor(tmp_path, monkeypatch, kind, options):
    """As on a GPU, for CUDA graphs; torch's own check of the device is put aside here."""
    for module in {kind.__name__.lower() for kind, _ in CAPTURABLE} - {"adamw"}:
        own = sys.modules[f"torch.optim.{module}"]
        monkeypatch.setattr(own, "_get_capturable_supported_devices", lambda **_: ["cpu"])
    options = {"foreach": True, **options, "capturable": True}
    assert rounding(tmp_path / "run.h5", kind, options) <= 1e-13


def test_a_tensor_that_a_schedule_fills_anew(tmp_path):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0]["lr"].fill_(0.01 / (4 + t))

    rule = Rule("", O.AdamW, {"lr": T(0.01), "weight_decay": 0.3})
    run = trace(tmp_path / "run.h5", rule, settle=settle, steps=5, state_every=2, before=2)
    Replay(run.path, task=run.task).verify(progress=False)
