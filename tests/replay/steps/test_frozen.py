"""Layers that are frozen for some steps, and what torch's optimizers do to them meanwhile."""

from __future__ import annotations

import pytest
import torch

from replay import Replay
from tests.helpers.comparing import compare
from tests.helpers.rules import BY_NAME, RULES, clip_factors, trace
from tracer.errors import MismatchError

MEANWHILE = (2, 3)


def freeze(t, _optimizer, model):
    model[0].requires_grad_(t not in MEANWHILE)


def left_behind(value):
    """Return a hook that leaves a gradient at what is frozen, as ``set_to_none=False`` does."""

    def hook(_t, _optimizer, model):
        for parameter in model[0].parameters():
            if not parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, value)

    return hook


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_zero_gradient_is_a_gradient(tmp_path, rule):
    """Decay, momentum and second moments act on a frozen parameter that has one."""
    loop = {"settle": freeze, "hook": left_behind(0.0), "steps": 5, "before": 1}
    run = trace(tmp_path / "run.h5", rule, **loop)
    compare(run, clip_factors(run, None), methods=("tracin",))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_another_gradient_is_not_the_examples_own(tmp_path, name):
    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=freeze, hook=left_behind(0.1), steps=4)
    said = (
        r"(?s)step 2 of .* does not reproduce.*they were frozen, and kept the gradient of an earl"
    )
    with pytest.raises(MismatchError, match=said):
        Replay(run.path, task=run.task).verify(progress=False)
