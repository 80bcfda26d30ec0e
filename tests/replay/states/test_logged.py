"""The one door to a run's states: what it gives is what is on file, each state read once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from replay import Replay
from replay.states.logged import LoggedStates
from tests.helpers.cases import CASES
from tests.helpers.rules import BY_NAME, trace
from tests.helpers.training import Run
from tracer import open_log
from tracer.errors import LogError
from tracer.log.read.run_log import RunLog


@pytest.fixture
def read(monkeypatch):
    """Count the states that are read."""
    seen, whole = Counter(), RunLog.parameters

    def spy(self, t):
        seen[t] += 1
        return whole(self, t)

    monkeypatch.setattr(RunLog, "parameters", spy)
    return seen


def assert_equal(found, stored):
    assert found.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in found.items())


@pytest.mark.parametrize("backwards", [False, True])
def test_each_state_is_read_once(tmp_path, read, backwards):
    run = trace(tmp_path / "run.h5", BY_NAME["nesterov"], steps=5)
    with open_log(run.path) as log:
        states = LoggedStates(log)
        read.clear()
        for t in sorted(range(5), reverse=backwards):
            assert states.transition(t).step.index == t
        assert read == dict.fromkeys(range(6), 1)


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_so_a_replay_reads_each_once(tmp_path, read, name):
    run = trace(tmp_path / "run.h5", BY_NAME[name], steps=5)
    replay = Replay(run.path, task=run.task)
    replay.drops([0], progress=False)
    assert all(read[t] <= 3 for t in range(1, 5))
    read.clear()
    replay.verify(progress=False)
    assert set(read) <= set(range(6))
    assert all(count == 1 for count in read.values())  # what was read before is known


def test_states_are_those_on_file(tmp_path):
    (case,) = [case for case in CASES if case.name == "batchnorm-dropout"]
    case.trace(tmp_path / "run.h5")
    with open_log(tmp_path / "run.h5") as log:
        states = LoggedStates(log)
        assert states.last == len(log)
        for t in range(len(log)):
            now = states.transition(t)
            for k, found in ((t, now.before), (t + 1, now.after), (t + 1, states.at(t + 1))):
                assert_equal(found.parameters, log.parameters(k))
                assert_equal(found.buffers, log.buffers(k))
        with pytest.raises(IndexError):
            states.at(len(log) + 1)


def test_the_optimizer_by_parameter(tmp_path):
    run = trace(tmp_path / "run.h5", BY_NAME["adamw"], steps=5, state_every=2)
    with open_log(run.path) as log:
        states = LoggedStates(log)
        assert states.stored == set(log.states()) >= {0, 2, 4, 5}
        names = [name for group in log.step(4).groups for name in group.names]
        for t in (2, 5):
            found, stored = states.optimizer(t)[0], log.state(t)["optimizer"]["state"]
            assert list(found) == names
            for k, name in enumerate(names):
                assert torch.equal(found[name]["exp_avg"], stored[k]["exp_avg"])
        assert states.optimizer(0)[0] == {}
        with pytest.raises(LogError, match="no full state before step 3"):
            states.optimizer(3)


def test_the_final_state_of_a_live_run_is_read_again(tmp_path):
    """Buffers change in the forward pass: those after the last step are not yet the next one's."""
    run = Run(tmp_path / "run.h5").train(3)
    run.optimizer.flush()
    with open_log(tmp_path / "run.h5") as log:
        states = LoggedStates(log)
        last = states.transition(2).after
        with torch.no_grad():
            run.model[1].running_mean += 1  # between the steps
        run.train(4)
        run.optimizer.flush()
        assert log.refresh() == 4
        now = states.transition(3).before
        assert torch.equal(now.buffers["1.running_mean"], log.buffers(3)["1.running_mean"])
        assert not now.same_buffers(last)
    run.close()


def test_along_a_step(tmp_path):
    run = trace(tmp_path / "run.h5", BY_NAME["sgd"], steps=2)
    with open_log(run.path) as log:
        now = LoggedStates(log).transition(1)
    for u in (0, 0.25, 1):
        found = now.along(u)
        assert found.buffers is now.before.buffers
        for name, w in now.before.parameters.items():
            expected = (1 - u) * w.double() + u * now.after.parameters[name].double()
            assert np.allclose(found.parameters[name], expected, rtol=1e-12)
