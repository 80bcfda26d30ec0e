"""Whether a run reproduces: every rule does; a step that was tampered with is named."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from replay import Replay
from tests.helpers.cases import CASES
from tests.helpers.rules import RULES, trace
from tracer.errors import MismatchError


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_reproduces(tmp_path, rule):
    run = trace(tmp_path / "run.h5", rule, clip=0.05, scheduled=True, accumulate=True, before=2)
    found = Replay(run.path, task=run.task).verify(progress=False)
    assert found.steps == range(6)
    assert list(found.scaled_outside) == [0, 2, 4]
    assert all(0 < factor < 1 for factor in found.scaled_outside.values())
    assert str(found) == (
        "steps 0:6 reproduce; in 3 of these 6 steps the gradient was scaled outside the optimizer"
    )
    window = Replay(run.path, task=run.task).verify(steps="3:5", progress=False)
    assert window.steps == range(3, 5)
    assert list(window.scaled_outside) == [4]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_reproduces(tmp_path, case):
    task = case.trace(tmp_path / "run.h5")
    found = Replay(tmp_path / "run.h5", task=task).verify(progress=False)
    assert str(found).endswith(" reproduce")


@pytest.mark.parametrize("name", ["sgd", "heavy-ball", "adamw"])
@pytest.mark.parametrize("changed", [1, 4])
def test_the_first_step_that_differs_is_named(tmp_path, name, changed):
    def touch(t, _, model):
        if t >= changed:
            with torch.no_grad():
                model[2].bias[1] += 1e-5

    (rule,) = [rule for rule in RULES if rule.name == name]
    run = trace(tmp_path / "run.h5", rule, hook=touch)
    replay = Replay(run.path, task=run.task)
    with pytest.raises(MismatchError, match=rf"^step {changed - 1} of .*'2\.bias'"):
        replay.verify(progress=False)
    if changed > 1:
        replay.verify(steps=(0, changed - 1), progress=False)


def test_another_task_does_not_reproduce(tmp_path):
    run = trace(tmp_path / "run.h5", RULES[0])
    moved = [(x + 1e-3, y) for x, y in run.task.train]
    task = dataclasses.replace(run.task, train=moved)
    with pytest.raises(MismatchError, match="step 0 of .* does not reproduce"):
        Replay(run.path, task=task).verify(progress=False)
