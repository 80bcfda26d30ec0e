"""The first steps are replayed while training goes on, which is bitwise what it is without."""

from __future__ import annotations

import random
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Task
from tracer import TracingOptimizer, open_log
from tracer.errors import TracingError, TracingWarning

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.Generator()


class Rows:
    """A data set with a generator of its own, which each look at an example moves."""

    def __init__(self):
        self.own = np.random.default_rng(0)

    def __len__(self):
        return len(X)

    def __getitem__(self, k):
        self.own.random()
        random.random()
        np.random.random()  # noqa: NPY002
        return X[k], k % 3


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))


def loss(model, batch):
    torch.rand(2, generator=NOISE)
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def scalar(model, batch):
    return loss(model, batch).mean()


def train(path=None, *, join=torch.mean, shared=False, named=None, **given):
    """Train six steps; return all that training leaves, and what was warned of at which."""
    model, rows, said = build(), Rows(), []
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    NOISE.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if path is not None:
        task = Task((lambda: model) if shared else build, given.pop("loss", loss), rows, rows)
        optimizer = TracingOptimizer(optimizer, model, path, task=named or task, **given)
    for t in range(6):
        ids = [(3 * t + k) % 20 for k in range(3)]
        optimizer.zero_grad()
        batch = torch.utils.data.default_collate([rows[k] for k in ids])
        join(loss(model, batch)).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step(**({} if path is None else {"batch_ids": ids}))
        said += [(t, str(one.message)) for one in caught]
    if path is not None:
        optimizer.close()
        optimizer = optimizer.optimizer
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    tensors += [s["momentum_buffer"] for s in optimizer.state.values()]
    tensors += [torch.get_rng_state(), NOISE.get_state()]
    others = random.getstate(), str(np.random.get_state()), rows.own.bit_generator.state  # noqa: NPY002
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return [[t.detach().clone() for t in tensors], others, flags], said


def same(a, b):
    return all(map(torch.equal, a[0], b[0])) and a[1:] == b[1:]


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_that_replays(path, capsys, shared):
    after, said = train(path, shared=shared)
    assert same(after, train()[0])
    assert said == []
    assert "steps 0:3 reproduce" in capsys.readouterr().err
    assert len(open_log(path)) == 6


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_will_not_replay_is_said_at_once(path, steps):
    after, said = train(path, join=torch.sum, check_steps=steps)
    assert same(after, train(join=torch.sum)[0])
    ((t, text),) = said
    assert t == steps
    assert text.startswith("this run will not replay, as its first steps show. step 0 of ")
    assert "in the run and is" in text
    assert 'reduction="sum"' in text
    assert len(open_log(path)) == 6


def test_a_task_that_is_wrong_is_said_at_once(path):
    after, said = train(path, loss=scalar)
    assert same(after, train()[0])
    ((t, text),) = said
    assert (t, len(open_log(path))) == (3, 6)
    assert text.startswith(f"steps 0:3 of {path} cannot be replayed, nor will the later ones: Task")
    assert "returned one number for 3 examples, a mean" in text


def test_no_check(path):
    assert train(path, join=torch.sum, check_steps=0)[1] == []
    with pytest.raises(TracingError, match="check_steps= needs a task to replay them with"):
        model = build()
        sgd = torch.optim.SGD(model.parameters())
        TracingOptimizer(sgd, model, path, overwrite=True, check_steps=2)
    for task in (7, "no_colon"):
        with pytest.raises(TracingError, match=r'task must be "package.module:name", "file.py:na'):
            train(path, named=task, overwrite=True)


def test_names_are_looked_up_in_what_is_imported(path, tmp_path, monkeypatch, capsys):
    """A program is not run again for the task that it holds."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("of_a_test")
    module.__file__, module.task = str(tmp_path / "train.py"), Task(build, scalar, Rows(), Rows())
    train(path, named="train.py:task", overwrite=True)
    assert "the task train.py:task is not imported here; pass the task itself" in (
        capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "of_a_test", module)
    for name in ("train.py:task", "of_a_test:task"):
        assert "returned one number" in train(path, named=name, overwrite=True)[1][0][1]
    with monkeypatch.context() as patch:  # as `python -m package.train` has it
        patch.setitem(sys.modules, "__main__", module)
        module.__spec__ = ModuleSpec("package.train", None)
        ((_, text),) = train(path, named="package.train:task", overwrite=True)[1]
        assert "returned one number" in text
    train(path, named=module.task, overwrite=True)
    with open_log(path) as log:
        assert log.metadata["task"] == "of_a_test:task"


def test_a_resumed_run_is_checked_where_it_goes_on(path, capsys):
    train(path)
    with pytest.warns(TracingWarning, match="step 6 of .* does not reproduce"):
        for t, text in train(path, join=torch.sum, resume=True)[1]:
            warnings.warn(text, TracingWarning, stacklevel=1)
            assert t == 3
