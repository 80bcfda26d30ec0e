"""What is computed of an example does not depend on which others share its pass, nor on memory."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import numpy as np
import pytest
import reference
import torch
from test_memory import peak_bytes
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from replay.batches import fresh, shape
from replay.estimate import estimate
from replay.gradients import company
from replay.gradients.engine import Engine
from replay.measured import Examples
from tracer import TracingOptimizer, open_log
from tracer.errors import GradientError, TaskError

METHODS = ("tracin", "ideal", "tracincp")
CHOSEN = {"checkpoints": [0, 2, 5], "progress": False}


def trace(path, task, steps=5, size=3, lr=0.1):
    """Train a few steps."""
    torch.manual_seed(1)
    model = task.model()
    inner = torch.optim.SGD(model.parameters(), lr=lr)
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(steps):
            ids = [(size * t + k) % len(task.train) for k in range(size)]
            optimizer.zero_grad()
            batch = task.collate([copy.deepcopy(task.train[i]) for i in ids])
            task.loss(model, batch).mean().backward()
            optimizer.step(batch_ids=ids)


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


# losses and collate functions that change what they are given


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


# company


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


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square()


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
    run = Replay(tmp_path / "run.h5", task)
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


@pytest.mark.parametrize("where", ["gradients", "later state"])
def test_either_look_finds_it(tmp_path, monkeypatch, where):
    """By gradients at the first state, else by values at a later one."""
    data = [(torch.randn(4).double(), torch.tensor(1.0).double()) for _ in range(12)]
    task = Task(lambda: Gated().double(), squared, data, data[:5])
    trace(tmp_path / "run.h5", task)
    if where == "later state":
        monkeypatch.setattr("replay.measured.differ", lambda *_: False)
    looked, inner = [], Examples.are_independent

    def look(self, state, name):
        looked.append((name, inner(self, state, name)))
        return looked[-1][1]

    monkeypatch.setattr(Examples, "are_independent", look)
    Replay(tmp_path / "run.h5", task).drops([0, 1, 2], progress=False)
    assert looked[-1] == (f"test set, step {0 if where == 'gradients' else 2}", False)


def losses_of(model, x):
    return model(x).square().mean(1)


def test_the_engine_compares_with_examples_alone():
    """What is read in company agrees with plain backward passes in company."""
    torch.manual_seed(0)
    gate, model = torch.tensor(0.0), nn.Linear(4, 3).double()
    parameters, x = dict(model.named_parameters()), torch.randn(6, 4).double()
    shift = x.mean(0)

    def run(rows, company):
        return losses_of(model, rows + gate * (shift if company else 0))

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
    """Gradients in company are taken before an example is run alone."""
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
def test_rounding_is_not_taken_for_company(dtype):
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
    assert company.some_of(2) == [0, 1]
    assert company.some_of(9) == [0, 4, 8]


# data that load lazily

BYTES = 40_000


class Lazy:
    """Makes its examples when they are asked for and counts those that are alive."""

    def __init__(self, count, *, random=False):
        self.count, self.random = count, random
        self.alive, self.most, self.loaded = weakref.WeakSet(), 0, 0

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.loaded += 1
        generator = torch.Generator().manual_seed(i + self.random * self.loaded)
        x = torch.randn(BYTES // 4, generator=generator)
        self.alive.add(x)
        self.most = max(self.most, len(self.alive))
        return x, torch.tensor(float(i % 2))


class Averaging(nn.Module):
    """A model that keeps little of a long example."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(50, 1)

    def forward(self, x):
        return torch.tanh(self.layer(x.view(len(x), -1, 50).mean(1))).squeeze(1)


def averaging():
    torch.manual_seed(0)
    return Averaging()


def lazy(path, count, **options):
    task = Task(averaging, squared, Lazy(count, **options), [Lazy(4)[i] for i in range(4)])
    trace(path, Task(averaging, squared, Lazy(count), task.test))
    return task


def test_examples_are_alive_while_they_are_used(tmp_path):
    task = lazy(tmp_path / "run.h5", 200)
    small, large = [
        Replay(tmp_path / "run.h5", task, memory=memory) for memory in (40 * BYTES, "1GiB")
    ]
    chosen = {"methods": ("tracincp",), "checkpoints": [1, 3, 5], "progress": False}
    found = small.influence([0, 1], **chosen)
    assert task.train.most < 20
    assert task.train.loaded >= 3 * 200
    gc.collect()
    assert len(task.train.alive) < 20
    task.train.loaded = 0
    expected = large.influence([0, 1], **chosen)
    assert task.train.loaded < 250  # all of them fit, those looked at beforehand came twice
    close = {"rtol": 1e-4, "atol": 1e-7}
    assert np.allclose(found.scores["tracincp"], expected.scores["tracincp"], **close)
    gc.collect()
    assert not task.train.alive


def test_examples_that_are_drawn_anew_are_an_error(tmp_path):
    task = lazy(tmp_path / "run.h5", 60, random=True)
    run = Replay(tmp_path / "run.h5", task, memory=40 * BYTES)
    with pytest.raises(TaskError, match=r"train set: example \d+ was loaded twice and gave other"):
        run.influence([0], methods=("tracincp",), **CHOSEN)


def test_a_dry_run_meets_what_lazy_data_take(tmp_path):
    """Examples are 12 MB, as much again collated and copied."""
    task, budget = lazy(tmp_path / "run.h5", 300), 4_000_000
    chosen = {"methods": ("tracincp",), "checkpoints": [3]}
    tried, took = (
        peak_bytes(lambda job=job: job(Replay(tmp_path / "run.h5", task, memory=budget)))
        for job in (
            lambda run: estimate(run, [0, 1], **chosen),
            lambda run: run.influence([0, 1], progress=False, **chosen),
        )
    )
    assert took <= budget
    assert 0.8 * took <= tried <= 1.25 * took


def test_training_batches_may_be_views_of_the_data(tmp_path):
    """A loss that changes its batch in place leaves the data set alone, on either side."""
    data = [(torch.rand(1, 4, dtype=torch.float64) * 255, torch.tensor([k % 3])) for k in range(8)]

    def loss(model, batch):
        return F.cross_entropy(model(batch[0].div_(255)), batch[1], reduction="none")

    def model():
        torch.manual_seed(0)
        return nn.Linear(4, 3).double()

    task = Task(model, loss, data[:6], data[6:], collate=lambda examples: examples[0])
    trained, kept = model(), [x.clone() for x, _ in data]
    with TracingOptimizer(
        torch.optim.SGD(trained.parameters(), lr=0.1), trained, tmp_path / "r.h5"
    ) as o:
        for t in range(6):
            o.zero_grad()
            loss(trained, (data[t][0].clone(), data[t][1])).mean().backward()
            o.step(batch_ids=[t])
    run = Replay(tmp_path / "r.h5", task)
    run.verify(progress=False)
    run.influence([0], methods=("tracin",), progress=False)
    assert all(torch.equal(x, before) for (x, _), before in zip(data, kept, strict=True))
