"""What a job's memory decides is on file: who comes later takes it over, or says why not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.results.parts import Parts
from replay.session import memory
from replay.session.together import influence_together, self_influence_together
from replay.vectors.workspace import room, storable
from tests.helpers.cases import cross_entropy
from tests.helpers.jobs import Solo
from tracer import TracingOptimizer
from tracer.errors import InputError

LESS, MORE = "150kB", "4MB"  # some training examples at once, and all of them


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 3))


def examples(count):
    draw = torch.Generator().manual_seed(count)
    return [(torch.randn(6, generator=draw), torch.tensor(k % 3)) for k in range(count)]


TASK = Task(build, cross_entropy, examples(60), examples(9), measure=cross_entropy)
OTHER = replace(TASK, loss=lambda model, batch: 2 * cross_entropy(model, batch))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path, model = tmp_path_factory.mktemp("run") / "run.h5", TASK.model()
    sgd = torch.optim.SGD(model.parameters(), 0.2)
    with TracingOptimizer(sgd, model, path, task=None) as optimizer:
        for t in range(2):
            optimizer.zero_grad()
            batch = TASK.collate([TASK.train[i] for i in range(t, t + 4)])
            TASK.loss(model, batch).mean().backward()
            optimizer.step(batch_ids=range(t, t + 4))
    return path


def influence(log, out, given, task=TASK, tests=(0,), methods=("tracincp",)):
    run = Replay(log, task, memory=given)
    return influence_together(run, tests, Solo(), out, methods=methods, checkpoints=[0, 1])


def selves(log, out, given):
    asked = {"checkpoints": [0, 1], "by": None, "steps": None, "allow_mismatch": False}
    return self_influence_together(Replay(log, TASK, memory=given), Solo(), out, **asked)


class Killed(Exception):
    """In place of a signal."""


def begun(monkeypatch, after, do, *asked, **more):
    """Begin a job that is killed when so many parts are on file."""
    added, add = [], Parts.add

    def some(parts, name, values):
        if len(added) == after:
            raise Killed
        added.append(name)
        add(parts, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "add", some)
        with pytest.raises(Killed):
            do(*asked, **more)


@pytest.mark.parametrize(("do", "after"), [(influence, 1), (selves, 3)])
def test_a_job_goes_on_in_the_blocks_in_which_it_began(log, tmp_path, monkeypatch, do, after):
    """With other blocks of training examples, scores would have other bits, or count twice."""
    monkeypatch.setattr(memory, "_MOST", 1)  # temporaries do not bind it
    monkeypatch.setattr("replay.session.grid._COLUMNS", 1)
    expected, out = do(log, tmp_path / "whole.h5", LESS), tmp_path / "out.h5"
    if do is influence:
        other = do(log, tmp_path / "other.h5", MORE)
        assert not np.array_equal(other.scores["tracincp"], expected.scores["tracincp"])
    begun(monkeypatch, after, do, log, out, LESS)
    found = do(log, out, MORE)
    np.testing.assert_array_equal(found.scores["tracincp"], expected.scores["tracincp"])
    begun(monkeypatch, after, do, log, tmp_path / "more.h5", MORE)
    said = r"begun with chunks of 60 training examples, and the memory given holds \d+.\n1. Give as"
    with pytest.raises(InputError, match=said):
        do(log, tmp_path / "more.h5", LESS)


def test_chunks_of_test_examples_must_be_held(log, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MOST", 1)
    asked = {"tests": range(9), "methods": ("tracin",)}
    begun(monkeypatch, 1, influence, log, tmp_path / "out.h5", MORE, **asked)
    with pytest.raises(InputError, match="begun with chunks of 9 test.*memory given holds 1"):
        influence(log, tmp_path / "out.h5", "1kB", **asked)


def test_temporaries_are_cut_as_the_job_began(log, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    begun(monkeypatch, 1, influence, log, out, "3GiB")
    with pytest.raises(InputError, match=r"of 2,147,483,648 bytes or more.*given is 1,073,741,824"):
        influence(log, out, "1GiB")
    run = Replay(log, TASK, memory="4GiB")._run
    run.computing.memory.begin()
    with run.computing():
        assert (room(1 << 40), storable(1 << 40)) == (1 << 25, 1 << 29)
    influence(log, out, "2GiB")
    begun(monkeypatch, 1, influence, log, tmp_path / "less.h5", LESS)
    influence(log, tmp_path / "less.h5", MORE)


def test_columns_that_do_not_fit_are_never_added(log, tmp_path, monkeypatch):
    add, columns = Parts.add, np.array([1, 60])
    other = lambda parts, name, values: add(parts, name, {**values, "columns": columns})  # noqa: E731
    monkeypatch.setattr(Parts, "add", other)
    with pytest.raises(InputError, match="training examples 1 to 60, expected 0 to 60.\n1. Remove"):
        influence(log, tmp_path / "out.h5", MORE)


@pytest.mark.parametrize("methods", [("tracincp",), ("tracin",)])
def test_another_training_loss_is_another_question(log, tmp_path, monkeypatch, methods):
    """Test examples measure the same: the task has a measure of its own."""
    begun(monkeypatch, 1, influence, log, tmp_path / "out.h5", MORE, methods=methods)
    with pytest.raises(InputError, match="another question: its set of training losses is not"):
        influence(log, tmp_path / "out.h5", MORE, task=OTHER, methods=methods)
