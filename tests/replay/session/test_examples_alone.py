"""What is computed of an example does not depend on which others share its pass."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from replay.evaluate.certainty import have_same_gradients, have_same_values
from replay.evaluate.looks import independent
from replay.evaluate.nested import fresh
from replay.evaluate.test_side import Examples
from tests.helpers import reference
from tests.helpers.alone import CHOSEN, squared, trace
from tracer import open_log
from tracer.errors import NonFiniteError

METHODS = ("tracin", "ideal", "tracincp")


def check(path, task, test_ids, train_ids, **options):
    """Compare a replay with plain autograd, one example at a time, and with the tightest one."""
    found, single = (
        Replay(path, task, **more).influence(
            test_ids, train_ids=train_ids, methods=METHODS, ideal_tolerance=None, **CHOSEN
        )
        for more in (options, {**options, "memory": 1})
    )
    with open_log(path) as log:
        checkpoints = CHOSEN["checkpoints"]
        expected = reference.tracincp(task, log, test_ids, train_ids, checkpoints)
        values = [
            [
                reference.test_gradient(task, log.parameters(t), log.buffers(t), z)[0]
                for z in test_ids
            ]
            for t in range(len(log) + 1)
        ]
    for one in (found, single):
        assert np.allclose(one.scores["tracincp"], expected, rtol=1e-9, atol=1e-13)
        drops = -np.diff(np.array(values), axis=0)
        assert np.allclose(one.terms["tracin"]["measured"], drops, rtol=1e-9, atol=1e-13)
    for name in METHODS:
        assert np.allclose(found.scores[name], single.scores[name], rtol=1e-9, atol=1e-13), name


def vectors(count=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return [{"x": 255 * x[k], "labels": torch.tensor(k % 3)} for k in range(count)]


class Handed:
    """Hands out a dict of its own each time, as data sets on disk do."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return dict(self.examples[i])


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def plain(model, batch):
    return F.cross_entropy(model(batch["x"] / 255), batch["labels"], reduction="none")


def scaling(model, batch):
    batch["x"].div_(255)
    return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def taking(model, batch):
    labels = batch.pop("labels")
    return F.cross_entropy(model(batch["x"] / 255), labels, reduction="none")


def views(examples):
    """Give one example's batch as views of the data set's own tensors; hold odd things, too."""
    if len(examples) > 1:
        batch = torch.utils.data.default_collate(examples)
    else:
        batch = {name: value[None] for name, value in examples[0].items()}
    return {**batch, "lock": threading.Lock(), "text": ("a", None), "array": np.ones(2)}


def popping(examples):
    labels = torch.stack([example.pop("labels") for example in examples])
    return {"x": torch.stack([example["x"] for example in examples]), "labels": labels}


@pytest.mark.parametrize("collate", [torch.utils.data.default_collate, views, popping])
@pytest.mark.parametrize("loss", [plain, scaling, taking])
def test_losses_may_change_their_batch(tmp_path, loss, collate):
    data = vectors()
    task = Task(linear, loss, Handed(data), Handed(data[:4]), collate=collate)
    trace(tmp_path / "run.h5", task)
    clean = Task(linear, plain, vectors(), vectors()[:4])
    run, expected = (
        Replay(tmp_path / "run.h5", one).influence([0, 1, 3], methods=METHODS, **CHOSEN)
        for one in (task, clean)
    )
    for name in METHODS:
        assert np.allclose(run.scores[name], expected.scores[name], rtol=1e-12, atol=1e-15)
    assert torch.equal(data[0]["x"], vectors()[0]["x"])


def test_a_copy_shares_nothing_but_what_cannot_be_copied():
    x = torch.ones(3, requires_grad=True)
    one = {"x": x, "again": [x], "lock": threading.Lock(), "view": torch.zeros(1000)[:2]}
    found = fresh(one)
    assert found["x"] is found["again"][0]  # what stands twice is one thing
    assert found["x"] is not x
    assert found["x"].requires_grad
    assert found["lock"] is one["lock"]
    assert found["view"].untyped_storage().nbytes() == 8


class Unmasked(nn.Module):
    """A GRU that reads padding like anything else."""

    def __init__(self):
        super().__init__()
        self.cell, self.top = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.top(self.cell(x)[0][:, -1]).squeeze(1)


def padded(examples):
    x, y = zip(*examples, strict=True)
    return nn.utils.rnn.pad_sequence(list(x), batch_first=True), torch.stack(y)


def sequences(lengths):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 2, generator=generator, dtype=torch.float64), torch.tensor(k / 9).double())
        for k, n in enumerate(lengths)
    ]


def unmasked():
    torch.manual_seed(0)
    return Unmasked().double()


@pytest.mark.parametrize("memory", ["1GiB", 12_000])
def test_padding_of_examples_that_come_late(tmp_path, memory):
    """The first ones of the data set are all of one length."""
    data = sequences([4] * 70 + [3, 6, 2, 5])
    task = Task(unmasked, squared, data, data, collate=padded)
    trace(tmp_path / "run.h5", task)
    check(tmp_path / "run.h5", task, [70, 71, 2], [0, 72, 71], memory=memory)


def test_one_length_among_many_is_not_missed(tmp_path):
    """Where lengths differ every example is compared, not a sample."""
    data = sequences([4, 3, *[4] * 40])
    task = Task(unmasked, squared, data, data, collate=padded)
    trace(tmp_path / "run.h5", task, steps=2)
    found, single = (
        Replay(tmp_path / "run.h5", task, memory=memory).drops(range(42), progress=False)
        for memory in ("1GiB", 1)
    )
    assert np.allclose(found, single, rtol=1e-9, atol=1e-13)


def test_lengths_alone_do_not_cost_company(tmp_path):
    """Where padding changes nothing, examples of different lengths share passes."""

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1, bias=False)

        def forward(self, x):
            return torch.tanh(self.layer(x)).sum((1, 2))

    data, sizes = sequences([4, 3, 6, 2]), []

    def counted(model, batch):
        sizes.append(len(batch[1]))
        return squared(model, batch)

    def build():
        torch.manual_seed(0)
        return Summed().double()

    task = Task(build, counted, data, data, collate=padded)
    trace(tmp_path / "run.h5", task)
    run = Replay(tmp_path / "run.h5", task, audit=10)  # each state by a pass of its own
    run.influence([0, 1, 2, 3], methods=("tracin",), progress=False)
    sizes.clear()
    run.influence([0, 1, 2, 3], methods=("tracin",), progress=False)
    assert sizes.count(4) >= 10  # values and gradients at each step


class Gated(nn.Module):
    """Adds the mean of all examples by a gate that is closed at first."""

    def __init__(self):
        super().__init__()
        self.layer, self.top = nn.Linear(4, 3), nn.Linear(3, 1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        z = torch.tanh(self.layer(x))
        return self.top(z + self.gate * z.mean(0)).squeeze(1)


class Headed(nn.Module):
    """Statistics of the batch behind a head that is zero at first."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)
        self.top = nn.Linear(4, 1)
        nn.init.zeros_(self.top.weight)
        nn.init.zeros_(self.top.bias)

    def forward(self, x):
        return self.top(self.norm(x.view(-1, 1, 2, 2)).flatten(1)).squeeze(1)


@pytest.mark.parametrize("kind", [Gated, Headed])
def test_coupling_that_does_not_show_at_the_first_state(tmp_path, kind):
    def build():
        torch.manual_seed(0)
        return kind().double()

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    data = [(x[k], torch.tensor(k / 6).double()) for k in range(12)]
    task = Task(build, squared, data, data[:5])
    trace(tmp_path / "run.h5", task)
    check(tmp_path / "run.h5", task, [0, 1, 2, 4], [0, 1, 5, 7], audit=1)


@pytest.fixture
def gated(tmp_path):
    """A run whose gate is closed at first, and three of its examples."""
    data = [(torch.randn(4).double(), torch.tensor(1.0).double()) for _ in range(12)]
    task = Task(lambda: Gated().double(), squared, data, data[:5])
    trace(tmp_path / "run.h5", task)
    run = Replay(tmp_path / "run.h5", task)._run
    return run, Examples(task, [0, 1, 2], "test", run.models)


@pytest.mark.parametrize(
    ("state", "values", "gradients"), [(0, True, False), (2, False, False), (5, False, False)]
)
def test_either_look_finds_it(gated, state, values, gradients):
    """A closed gate shows in gradients, an open one in values, too."""
    run, examples = gated
    for company in ([[0], [1], [2]], [[1], [2, 0]]):
        now = run.states.at(state)
        assert have_same_values(examples, now, "here", company) is values
        assert have_same_gradients(examples, now, "here") is gradients


def test_each_is_alone_at_the_last_state_that_is_finite(gated, monkeypatch):
    run, examples = gated
    looked, asked = [], []

    def look(examples, state, where, company):
        looked.append((where.split()[-1], company == [[0], [1], [2]]))
        if where.endswith("5"):
            raise NonFiniteError("diverged")
        return True

    monkeypatch.setattr("replay.evaluate.looks.have_same_values", look)
    monkeypatch.setattr(
        "replay.evaluate.looks.have_same_gradients", lambda *_: asked.append(len(looked)) or True
    )
    assert independent([examples], "test", run.states, run.chunks.group) == (True, False)
    assert (looked, asked) == ([("5", True), ("2", False), ("2", True), ("0", False)], [3, 4])


@pytest.mark.parametrize("share", [0, 1e-4])
def test_company_that_only_gradients_show(gated, share):
    """A function whose gradient alone depends on the others."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient + share * gradient.roll(1, 0)

    run, examples = gated
    examples.function = lambda model, batch: squared(
        lambda x: Mixed.apply(model.top(model.layer(x)).squeeze(1)), batch
    )
    assert have_same_values(examples, run.states.at(5), "here", [[0], [1, 2]])
    assert have_same_gradients(examples, run.states.at(5), "here") is (share == 0)


def test_gradients_that_are_views_are_compared(gated):
    """Of a sum autograd gives the gradient as one number, expanded."""
    run, examples = gated
    examples.function = lambda model, batch: model.layer.weight.sum() * batch[1]
    assert have_same_gradients(examples, run.states.at(5), "here")
