"""Segments of a run that a job takes: where they begin, and what of them is computed again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.results.parts import Parts
from replay.session import shared_self
from replay.session.run_pass import RunPass
from replay.session.segments import runs, whole_segments
from replay.session.together import influence_together, self_influence_together, verified_together
from replay.steps.replayer import Replayer
from tests.helpers.cases import cross_entropy
from tests.helpers.jobs import Solo
from tracer import TracingOptimizer
from tracer.errors import InputError

STEPS = 34
RUNS = {
    "sgd": (torch.optim.SGD, {}),
    "rmsprop": (torch.optim.RMSprop, {"state_every": 8}),
    "rmsprop-whole": (torch.optim.RMSprop, {}),
}


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def examples():
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(6, generator=draw), torch.tensor(k % 3)) for k in range(16)]


TASK = Task(build, cross_entropy, examples(), examples())


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, (rule, how) in RUNS.items():
        model = TASK.model()
        optimizer = rule(model.parameters(), lr=0.01)
        with TracingOptimizer(optimizer, model, folder / name, task=None, **how) as optimizer:
            for t in range(STEPS):
                ids = [(5 * t + k) % 16 for k in range(3)]
                optimizer.zero_grad()
                batch = TASK.collate([TASK.train[i] for i in ids])
                TASK.loss(model, batch).mean().backward()
                optimizer.step(batch_ids=ids)
    return folder


class Killed(Exception):
    """In place of a signal."""


class Late(Solo):
    """A process that leaves some segments to others, which die before they begin."""

    def claims(self, part):
        taken = not part.startswith("steps") or int(part.split()[-1]) % 16 >= 8
        return taken and super().claims(part)

    def ended(self, look):
        return False


def killed(monkeypatch, after, do):
    """Let a job be killed when it has put so many parts on file."""
    add, numbers = Parts.add, count()

    def some(parts, name, values):
        if next(numbers) == after:
            raise Killed
        add(parts, name, values)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Parts, "add", some)
        do()


def selves(log, out, group):
    asked = {"checkpoints": None, "by": None, "steps": None, "allow_mismatch": False}
    found = self_influence_together(Replay(log, TASK), group, out, **asked)
    return found and found.scores["self"]


def verification(log, out, steps=None, threads=None):
    run = Replay(log, TASK, threads=threads)
    return verified_together(run, Solo(2), out, steps=steps, sample=None)


@pytest.mark.parametrize("name", ["rmsprop", "rmsprop-whole"])
def test_no_bit_depends_on_processes_and_kills(logs, tmp_path, monkeypatch, name):
    one = selves(logs / name, tmp_path / "1", Solo(1))
    np.testing.assert_array_equal(selves(logs / name, tmp_path / "4", Solo(4)), one)
    killed(monkeypatch, 20, lambda: selves(logs / name, tmp_path / "k", Solo(3)))
    np.testing.assert_array_equal(selves(logs / name, tmp_path / "k", Solo(1)), one)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_what_is_on_file_is_not_computed_again(logs, tmp_path, monkeypatch, name):
    replayed, visited, replay, visits = Counter(), Counter(), Replayer.replay, shared_self.visits

    def replaying(self, t, *known, **how):
        replayed[t] += 1
        return replay(self, t, *known, **how)

    def visiting(one, *known):
        visited[one.transition.step.index] += 1
        return visits(one, *known)

    monkeypatch.setattr(Replayer, "replay", replaying)
    monkeypatch.setattr(shared_self, "visits", visiting)
    selves(logs / name, tmp_path / "out", Late(4))
    killed(monkeypatch, 3, lambda: selves(logs / name, tmp_path / "out", Solo(2)))
    selves(logs / name, tmp_path / "out", Solo(1))
    assert sorted(visited) == [*range(STEPS)]
    assert visited.total() == STEPS + 1  # one was not on file yet
    assert name != "sgd" or replayed == visited


def test_no_walk_goes_through_what_is_on_file(logs, tmp_path, monkeypatch):
    walked, at, asked = Counter(), RunPass.at, {"methods": "tracin", "train_ids": [1]}

    def walking(self, steps):
        walked.update(one.transition.step.index for one, _ in steps)
        return at(self, steps)

    def influence(group, out=tmp_path / "out"):
        return influence_together(Replay(logs / "sgd", TASK), [3], group, out, **asked)

    monkeypatch.setattr(RunPass, "at", walking)
    influence(Late(4))
    found = influence(Solo(1))
    assert walked == Counter(range(STEPS))
    expected = influence(Solo(1), tmp_path / "new")
    np.testing.assert_array_equal(found.scores["tracin"], expected.scores["tracin"])


def test_segments_begin_where_reading_suffices(logs):
    def starts(name, steps):
        return [one.start for one in whole_segments(Replay(logs / name, TASK)._run, steps)]

    assert starts("rmsprop", range(STEPS)) == [0, 8, 16, 24, 32]
    assert starts("rmsprop", range(3, 20)) == [3, 8, 16]
    assert starts("rmsprop-whole", range(STEPS)) == [0, STEPS // 2]
    assert starts("rmsprop-whole", range(20)) == [0]
    assert len(starts("sgd", range(STEPS))) == 16
    assert starts("sgd", range(2)) == [0, 1]
    assert runs([1, 2, 5, 7, 8]) == [range(1, 3), range(5, 6), range(7, 9)]


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_a_verification_that_was_killed_serves_another_window(logs, tmp_path, monkeypatch, name):
    """Step 0 deviates more than those of the window: what is on file of 1 is its own."""
    out, new = tmp_path / "out", tmp_path / "new"
    killed(monkeypatch, 2, lambda: verification(logs / name, out))
    found = verification(logs / name, out, "1:3")
    assert found == verification(logs / name, new, "1:3")
    assert found == Replay(logs / name, TASK).verify(steps="1:3", progress=False)
    changed = replace(TASK, loss=lambda model, batch: cross_entropy(model, batch) * 1.000001)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "TASK", changed)
        with pytest.raises(InputError, match="its set of gradients is not"):
            verification(logs / name, out, "3:20")


def test_a_verification_goes_on_with_its_threads(logs, tmp_path, monkeypatch):
    out, found = tmp_path / "out", torch.get_num_threads()
    killed(monkeypatch, 7, lambda: verification(logs / "sgd", out))
    torch.set_num_threads(found + 1)
    try:
        assert str(verification(logs / "sgd", out)) == f"steps 0:{STEPS} reproduce"
    finally:
        torch.set_num_threads(found)
    with pytest.raises(InputError, match=r"number of threads is.*\n.*\n.*\n3. Take one process"):
        verification(logs / "sgd", out, threads=found + 1)
