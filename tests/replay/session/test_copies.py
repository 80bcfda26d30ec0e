"""A replay's models share nothing, with the task nor with each other."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from tests.helpers.alone import trace
from tests.helpers.cases import cross_entropy
from tracer.errors import TaskError

DATA = [(x, k % 3) for k, x in enumerate(torch.randn(12, 4, generator=torch.manual_seed(0)))]


class Net(nn.Module):
    """A layer that is reached in one way or another."""

    def __init__(self, how="plain"):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.how = nn.Linear(4, 3), how
        self.call = self.layer.forward
        if how == "lambda":
            self.call = lambda x: self.layer(x)
        elif how == "compiled":
            self.call = torch.compile(self.layer.forward, backend="eager")
        elif how == "hook":
            self.layer.register_forward_hook(lambda _, __, y: y + self.layer.bias.sum())
        elif how == "lock":
            self.lock = threading.Lock()
        elif how == "generator":
            self.numbers = (k for k in range(3))
        elif how == "parameter hook":
            self.layer.weight.register_hook(lambda g: 0.5 * g)

    def forward(self, x):
        return self.call(x) if self.how in ("lambda", "compiled") else self.layer(x)


WAYS = {
    "lambda": r"a function in 'call' goes on using the original",
    "compiled": r"a function in 'call' goes on using the original",
    "hook": r"a function in 'layer._forward_hooks' goes on using the original",
    "lock": r"copying it failed: TypeError: cannot pickle",
    "generator": r"copying it failed: TypeError: cannot pickle",
    "parameter hook": r"parameter 'layer.weight' has hooks",
}


def measured(path, task):
    found = Replay(path, task).influence([0, 1], methods=("tracin", "ideal"), progress=False)
    assert abs(found.terms["ideal"]["residual"]).max() < 1e-12
    return found.scores["ideal"]


@pytest.mark.parametrize("how", WAYS)
def test_models_that_cannot_be_copied_are_built(tmp_path, how):
    task = Task(lambda: Net(how).double(), double, DATA, DATA[:4])
    trace(tmp_path / "run.h5", task)
    Replay(tmp_path / "run.h5", task).verify(progress=False)
    measured(tmp_path / "run.h5", task)
    built = Net(how).double()
    message = r"task.model\(\) hands out what it handed out before, .*def model.*" + WAYS[how]
    with pytest.raises(TaskError, match=message):
        Replay(tmp_path / "run.h5", Task(lambda: built, double, DATA, DATA[:4]))


def double(model, batch):
    return cross_entropy(model, (batch[0].double(), batch[1]))


SHARED = nn.Linear(4, 4).double()
TABLE = torch.randn(3, 4, generator=torch.manual_seed(1)).double()


def around_one_part():
    torch.manual_seed(0)
    return nn.Sequential(SHARED, nn.Linear(4, 3).double())


def around_one_table():
    model = nn.Linear(4, 3).double()
    model.weight = nn.Parameter(TABLE)  # shares its memory
    nn.init.zeros_(model.bias)
    return model


@pytest.mark.parametrize("build", [around_one_part, around_one_table])
def test_models_around_a_part_of_the_programs(tmp_path, build):
    """They are copied, and the part stays what it is."""
    before = {k: v.clone() for k, v in build().state_dict().items()}
    task = Task(build, double, DATA, DATA[:4])
    trace(tmp_path / "run.h5", task)
    with torch.no_grad():
        build().load_state_dict(before)
    measured(tmp_path / "run.h5", task)
    assert all(torch.equal(before[k], v) for k, v in build().state_dict().items())


def test_a_forward_that_uses_another_copy(tmp_path):
    """By way of something that ``model()`` cannot be seen to share."""
    first = []

    class Reaching(Net):
        def forward(self, x):
            first.append(self)
            return self.layer(x) + first[0].layer(x)

    task = Task(lambda: Reaching().double(), double, DATA, DATA[:4])
    trace(tmp_path / "run.h5", task)
    first.clear()
    run = Replay(tmp_path / "run.h5", task)
    first.append(run._run.models.train.module)
    with pytest.raises(TaskError, match="uses parameter 'layer..*' of another copy of the model"):
        run.drops([0], progress=False)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_models_that_come_compiled_or_wrapped(tmp_path, wrap):
    """As the run used them: either side knows the parameters by the names inside."""
    plain = Task(lambda: Net().double(), double, DATA, DATA[:4])
    trace(tmp_path / "run.h5", Task(lambda: wrap(Net().double()), double, DATA, DATA[:4]))
    wrapped = Task(lambda: wrap(Net().double()), double, DATA, DATA[:4])
    found, expected = (measured(tmp_path / "run.h5", task) for task in (wrapped, plain))
    assert np.array_equal(found, expected)
