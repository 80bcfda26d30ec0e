"""A gradient that the replay has serves the step that is taken again, if that is proved."""

import pytest
import torch

from replay import Replay
from replay.states.execution import Execution
from tests.helpers.sparse import STEPS, task, trace
from tracer import open_log


@pytest.fixture
def taken(monkeypatch):
    """Numbers of the steps that were taken by passes of their own."""
    found, take = [], Execution.take

    def counted(self, step, buffers):
        found.append(step.index)
        take(self, step, buffers)

    monkeypatch.setattr(Execution, "take", counted)
    return found


@pytest.mark.parametrize(
    ("model", "rule", "loop"),
    [("cnn", "sgd", {}), ("attention", "adamw", {"clip": "inside"}), ("mlp", "heavy-ball", {})],
)
def test_a_replay_passes_each_batch_once(tmp_path, taken, model, rule, loop):
    trace(tmp_path / "run.h5", model, rule, size=8, snapshot_every=5, **loop)
    found = Replay(tmp_path / "run.h5", task=task(model)).influence(
        [0], methods=["tracin"], progress=False
    )
    assert found.attributes["steps_proved"] == STEPS
    assert taken == []


@pytest.mark.parametrize("wrong", [0, 1, 3, 5, STEPS - 1])
def test_a_gradient_that_is_not_the_runs_is_put_aside(tmp_path, taken, wrong):
    trace(tmp_path / "dense.h5", "cnn", "heavy-ball", size=8, snapshot_every=1)
    trace(tmp_path / "run.h5", "cnn", "heavy-ball", size=8, snapshot_every=5)
    run = Replay(tmp_path / "run.h5", task=task("cnn"))
    states, given = run._run.states, []
    transition = states.transition

    def spoiled(t, gradient=None):
        given.append(t)
        bad = {name: g + 1e-3 for name, g in gradient.items()} if t == wrong else gradient
        return transition(t, bad)

    states.transition = spoiled
    run.influence([0], methods=["tracin"], progress=False)
    assert states.proof().proved == STEPS
    assert set(taken) >= set(range(wrong, STEPS))
    with open_log(tmp_path / "dense.h5") as log:
        for t in range(STEPS):
            now = transition(t)
            for name, w in log.parameters(t + 1).items():
                assert torch.equal(now.after.parameters[name], w)
