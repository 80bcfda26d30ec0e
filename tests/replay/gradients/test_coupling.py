"""The engine compares examples in a batch with examples alone, to their rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.evaluate.nested import shape
from replay.gradients.engine import Engine
from replay.gradients.proof import independence
from tracer import TracingOptimizer
from tracer.errors import GradientError


def losses_of(model, x):
    return model(x).square().mean(1)


def test_the_engine_compares_with_examples_alone():
    """What is read of a batch agrees with plain backward passes of each example alone."""
    torch.manual_seed(0)
    gate, model = torch.tensor(0.0), nn.Linear(4, 3).double()
    parameters, x = dict(model.named_parameters()), torch.randn(6, 4).double()
    shift = x.mean(0)

    def run(rows, together):
        return losses_of(model, rows + gate * (shift if together else 0))

    def go(agree=lambda: False):
        return Engine(audit=1).of_independent(
            parameters,
            lambda: run(x, True),
            lambda i: run(x[i : i + 1], False),
            agree=agree,
            where="state 3",
        )

    go()
    gate.fill_(1e-3)
    with pytest.raises(GradientError, match=r"state 3: values .* evaluated with it .*--memory 1"):
        go()
    go(agree=lambda: True)


def test_a_workspace_that_every_pass_writes_anew():
    """Gradients keep what their own pass put there, also where they are compared and proven."""
    torch.manual_seed(0)
    space, model = torch.zeros(6, 4).double(), nn.Linear(4, 3).double()
    parameters, engine = dict(model.named_parameters()), Engine()
    batches = [torch.randn(6, 4).double() for _ in range(3)]

    def run(x):
        return losses_of(model, space[: len(x)].copy_(x))

    def gradients(x):
        return engine.of_independent(parameters, lambda: run(x), lambda i: run(x[i : i + 1]))

    for x, found in zip(batches, [gradients(x) for x in batches], strict=True):
        for i in range(len(x)):
            (own,) = torch.autograd.grad(losses_of(model, x[i : i + 1]), [model.weight])
            torch.testing.assert_close(found.rows("weight", [i])[0].view_as(own), own)


class Workspace(nn.Module):
    """Copies what its layer takes into one place at every pass."""

    def __init__(self):
        super().__init__()
        self.layer, self.space = nn.Linear(4, 3), torch.zeros(9, 4).double()

    def forward(self, x):
        return self.layer(self.space[: len(x)].copy_(x))


def test_examples_of_a_workspace_are_compared(tmp_path):
    """A batch's gradients are taken before an example is run alone."""
    torch.manual_seed(0)
    data = torch.randn(9, 4).double()
    task = Task(lambda: Workspace().double(), losses_of, train=data, test=data)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        for t in range(3):
            optimizer.zero_grad()
            losses_of(model, data[t : t + 4]).mean().backward()
            optimizer.step(batch_ids=range(t, t + 4))
    scores = [
        Replay(tmp_path / "run.h5", task, memory=memory)
        .influence(range(5), methods=("tracincp",), checkpoints=[0, 2, 3], progress=False)
        .scores["tracincp"]
        for memory in ("2GiB", 1)
    ]
    assert np.abs(scores[0] - scores[1]).max() <= 1e-12 * np.abs(scores[1]).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_not_taken_for_coupling(dtype):
    """Passes of different sizes round otherwise; ReLU and maxima may fall on the other side."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 10)),
    ).to(dtype)
    x = torch.randn(24, 3, 10, 10).to(dtype)
    parameters = dict(model.named_parameters())
    for _ in range(3):
        Engine(audit=1).of_independent(
            parameters, lambda: losses_of(model, x), lambda i: losses_of(model, x[i : i + 1])
        )
        with torch.no_grad():
            for p in model.parameters():
                p += 0.01 * torch.randn_like(p)


@pytest.mark.parametrize(
    ("dtype", "scale", "share", "found"),
    [
        (torch.float64, 1, 1e-6, False),
        (torch.float64, 1, 1e-4, True),
        (torch.float32, 1, 1e-3, False),
        (torch.float32, 1, 2e-2, True),
        (torch.float32, 1e-6, 0.5, False),  # fitted: what is left is rounding
        (torch.bfloat16, 1, 5e-2, False),
        (torch.bfloat16, 1, 0.5, True),
    ],
)
def test_how_much_may_be_rounding(dtype, scale, share, found):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).to(dtype), torch.randn(6, 4).to(dtype)
    parameters = dict(model.named_parameters())

    def run():
        Engine().of_independent(
            parameters,
            lambda: losses_of(model, x) * scale,
            lambda i: losses_of(model, x[i : i + 1]) * scale * (1 + share),
        )

    if found:
        with pytest.raises(GradientError, match="evaluated with it"):
            run()
    else:
        run()


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ((torch.ones(2, 3), 1), ((2, 3), ())),
        ({"a": "abc", "b": [1, 2.0]}, (("a", 3), ("b", ((), ())))),
        ([np.ones(4), np.int64(3), None], ((4,), (), ())),
        ((torch.ones(1), object()), None),
    ],
)
def test_shapes_of_examples(example, expected):
    assert shape(example) == expected


def test_some_examples_are_looked_at():
    assert independence.some_of(2) == [0, 1]
    assert independence.some_of(9) == [0, 4, 8]
