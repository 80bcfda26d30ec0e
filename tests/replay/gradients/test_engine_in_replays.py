"""The gradient engine inside a replay: its audits, and what its results do not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.evaluate.test_side import Examples
from replay.session.scoring import Scoring
from tests.helpers.cases import CASES
from tests.helpers.cases import cross_entropy as loss
from tracer import TracingOptimizer, open_log
from tracer.errors import GradientError

TEST_IDS = [2, 0, 3]
METHODS = ("tracin", "ideal", "tracincp", "tracin-sgd")


def scores(path, task, ids=TEST_IDS, **options):
    found = Replay(path, task=task, **options).influence(
        ids, methods=METHODS, checkpoints=[0, 2], ideal_tolerance=1e-4, progress=False
    )
    return np.stack([found.scores[m][[found.test_ids.index(i) for i in TEST_IDS]] for m in METHODS])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_do_not_depend_on_how_they_are_computed(case, tmp_path):
    """Chunks, memory, order of the test IDs, audits."""
    task = case.trace(tmp_path / "run.h5")
    expected = scores(tmp_path / "run.h5", task)
    size = 1e-12 * np.abs(expected).max((1, 2), keepdims=True)
    for options in ({"memory": 20_000}, {"audit": 1}, {"ids": [3, 1, 0, 2]}):
        found = scores(tmp_path / "run.h5", task, **options)
        assert (np.abs(found - expected) <= size).all(), options


@pytest.mark.parametrize(("name", "left"), [("mlp", []), ("batchnorm-dropout", ["last"])])
def test_checkpoints_use_gradients_that_steps_have(name, left, tmp_path, monkeypatch):
    """Only a last state with buffers of its own is evaluated for TracInCP alone."""
    case = next(case for case in CASES if case.name == name)
    task = case.trace(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task=task)
    chosen = [*range(len(run.log)), len(run.log)]
    alone = run.influence(TEST_IDS, methods=("tracincp",), checkpoints=chosen, progress=False)
    seen = []
    whole = Scoring._sum_up

    def spy(scoring, numbers):
        seen.extend(numbers)
        whole(scoring, numbers)

    monkeypatch.setattr(Scoring, "_sum_up", spy)
    both = run.influence(
        TEST_IDS, methods=("tracin", "tracincp"), checkpoints=chosen, progress=False
    )
    assert seen == [len(run.log) for _ in left]
    size = np.abs(alone.scores["tracincp"]).max()
    assert np.abs(both.scores["tracincp"] - alone.scores["tracincp"]).max() <= 1e-12 * size


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", ["mlp", "batchnorm-dropout"])
def test_each_state_is_evaluated_once(name, momentum, tmp_path, monkeypatch):
    """Values and gradients at the end of a step are those at the beginning of the next one."""
    case = next(case for case in CASES if case.name == name)
    case = replace(case, options={**case.options, "momentum": momentum})
    task = case.trace(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task=task, audit=10)  # each by a pass of its own
    seen = {"values": 0, "gradients": 0}

    def spy(name, whole):
        def counted(self, state, where, *rest):
            seen[name] += not where.startswith("test set")  # where chunks are measured
            return whole(self, state, where, *rest)

        return counted

    for kind in seen:
        monkeypatch.setattr(Examples, kind, spy(kind, getattr(Examples, kind)))
    run.influence(TEST_IDS, methods=("tracin", "ideal"), ideal_tolerance=None, progress=False)
    steps = len(run.log)
    if name == "mlp":
        assert seen == {"values": steps + 1, "gradients": steps + 1}
    else:  # buffers move: φ(w_{t+1}; β_t) is one value more, and both ends of a step have β_t
        assert seen == {"values": 2 * steps + 1, "gradients": 2 * steps}


class ChannelsLast(nn.Module):
    """A convolutional model in the layout of memory that a GPU prefers, or in the usual one."""

    def __init__(self, memory):
        super().__init__()
        self.first, self.pixels = nn.Conv2d(2, 4, 3), nn.Linear(4, 4)
        self.norm, self.second = nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3, stride=2)
        self.memory = memory
        self.to(memory_format=memory)

    def forward(self, x):
        x = torch.tanh(self.first(x.contiguous(memory_format=self.memory)))
        x = self.pixels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.second(self.norm(x)).mean((2, 3))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_layouts_of_memory_do_not_matter(tmp_path, momentum):
    """A channels-last run replayed by a channels-last model and by one in the usual layout."""
    torch.manual_seed(0)
    data = [(torch.randn(2, 7, 7).double(), torch.tensor(k % 3)) for k in range(12)]
    tasks = [
        Task(lambda memory=memory: ChannelsLast(memory).double(), loss, data, data[:4])
        for memory in (torch.channels_last, torch.contiguous_format)
    ]
    trace_pairs(tmp_path / "run.h5", tasks[0], momentum=momentum)
    found, expected = [Replay(tmp_path / "run.h5", task=task) for task in tasks]
    plan = {row.name: row for row in found.plan()}
    assert not [row for row in plan.values() if "complete" in row.train + row.test]
    for name, kind in (("first", "convolution"), ("pixels", "linear"), ("norm", "norm scale")):
        assert plan[f"{name}.weight"].train == plan[f"{name}.weight"].test == kind
    chosen = {"methods": METHODS, "checkpoints": [0, 3], "progress": False}
    left, right = (run.influence(TEST_IDS, **chosen).scores for run in (found, expected))
    for method in METHODS:
        size = np.abs(right[method]).max()
        assert np.abs(left[method] - right[method]).max() <= 1e-11 * size
    left, right = (run.self_influence(progress=False).scores for run in (found, expected))
    for kind, values in right.items():
        assert np.abs(left[kind] - values).max() <= 1e-11 * np.abs(values).max()


def small():
    return nn.Linear(3, 2).double()


def coupled_task(steps, much=None):
    """The graph is always the same; the data of ``steps`` couple their examples."""
    torch.manual_seed(0)
    data = [(torch.randn(3).double(), torch.tensor(float(k // 2 in steps))) for k in range(12)]

    def coupled(model, batch):
        x, own = batch
        z = torch.tanh(model(x)).sum(1)
        return z.square() + (own if much is None else much(model)) * z * z.mean()

    return Task(small, coupled, data, data[4:6])


def trace_pairs(path, task, **settings):
    """Six steps of two examples each."""
    model = task.model()
    with TracingOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, **settings), model, path
    ) as optimizer:
        for t in range(6):
            ids = [2 * t, 2 * t + 1]
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)


@pytest.fixture
def trusting(monkeypatch):
    """Let every plan hold for later passes, as if what is said of an operation were wrong."""
    monkeypatch.setattr("replay.gradients.plans.is_steady", lambda found, plan: True)


def test_coupling_that_begins_in_the_middle_is_an_error_that_names_the_step(tmp_path, trusting):
    task = coupled_task({3, 4, 5})
    trace_pairs(tmp_path / "run.h5", task)
    with pytest.raises(GradientError, match=r"step [34]: .*--audit 1"):
        Replay(tmp_path / "run.h5", task, audit=2).influence(
            [0], methods=["tracin"], progress=False
        )


@pytest.mark.parametrize("audit", [1, 100])
def test_coupling_that_begins_in_the_middle_is_exact(tmp_path, audit):
    task = coupled_task({3, 4, 5})
    trace_pairs(tmp_path / "run.h5", task)
    exact = Replay(tmp_path / "run.h5", task, audit=audit).influence(
        [0], methods=["tracin"], progress=False
    )
    assert abs(exact.terms["tracin"]["rounding"]).max() < 1e-12
    assert np.allclose(exact.scores["tracin"].sum(1), exact.terms["tracin"]["data"].sum(0))


@pytest.mark.parametrize(
    ("settings", "memory", "step"),
    [({}, "1GiB", 5), ({"momentum": 0.9}, "1GiB", 5), ({"momentum": 0.9}, 2_000, 0)],
    ids=["forwards", "backwards", "backwards-again"],
)
def test_coupling_in_the_step_that_is_seen_last_is_found(
    tmp_path, trusting, settings, memory, step
):
    """No audit is due there yet."""
    task = coupled_task({step})
    trace_pairs(tmp_path / "run.h5", task, **settings)
    run = Replay(tmp_path / "run.h5", task, memory=memory)
    with pytest.raises(GradientError, match=rf"(?s)step {step}: .*--audit 1"):
        run.influence([0], methods=["tracin"], progress=False)


@pytest.mark.parametrize(
    ("methods", "where"), [(["tracincp"], "checkpoint 5"), (["tracin"], "after step 4")]
)
def test_test_examples_are_proven_where_they_are_seen_last(tmp_path, trusting, methods, where):
    """Examples influence each other at the state before the last one only."""
    task = coupled_task(set())
    trace_pairs(tmp_path / "run.h5", task)
    with open_log(tmp_path / "run.h5") as log:
        weight = log.parameters(5)["weight"]

    def much(model):
        return float(torch.equal(model.weight.to(weight), weight) and not model.training)

    def alone(model, batch):
        z = torch.tanh(model(batch[0])).sum(1)
        return z.square() * (1 + much(model))

    moved = coupled_task(set(), much)
    run = Replay(tmp_path / "run.h5", moved)
    message = rf"(?s){where}: task.loss .* evaluated with it .*memory 1"
    with pytest.raises(GradientError, match=message):
        run.influence([0, 1], methods=methods, checkpoints=[0, 3, 5], progress=False)
    chosen = {"methods": methods, "checkpoints": [0, 3, 5], "progress": False}
    found = Replay(tmp_path / "run.h5", moved, memory=1).influence([0, 1], **chosen)
    task = Task(small, alone, task.train, task.test)
    expected = Replay(tmp_path / "run.h5", task).influence([0, 1], **chosen).scores[methods[0]]
    assert np.allclose(found.scores[methods[0]], expected, rtol=1e-12, atol=1e-15)


class Queried(nn.Module):
    """A layer whose input is a parameter: a learned query."""

    def __init__(self):
        super().__init__()
        self.query, self.layer = nn.Parameter(torch.ones(1, 3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(self.query.expand(len(x), -1)) * x[:, :2]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_layers_whose_input_is_a_parameter(tmp_path, momentum):
    """Gradients are kept while the model takes other values; float64 alone, example by example."""
    torch.manual_seed(0)
    data = [(torch.randn(3).double(), k % 2) for k in range(12)]

    def build():
        torch.manual_seed(1)
        return Queried().double()

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    task = Task(build, loss, data, data[:3])
    trace_pairs(tmp_path / "run.h5", task, momentum=momentum)
    names = ["query", "layer.weight"]
    run = Replay(tmp_path / "run.h5", task)
    found = run.influence([0, 1, 2], methods=["tracin", "ideal"], parameters=names, progress=False)
    with open_log(tmp_path / "run.h5") as log:
        rows = {t: log.parameters(t) for t in range(7)}
    model = build()
    asked = {name: torch.zeros(3, *rows[0][name].shape).double() for name in names}
    expected = np.zeros((3, 12))

    def gradient(z, t):
        model.load_state_dict(rows[t])
        batch = task.collate([data[z]])
        found = torch.autograd.grad(
            loss(model, batch).sum(), [model.get_parameter(n) for n in names]
        )
        return dict(zip(names, found, strict=True))

    for t in reversed(range(6)):
        for name in names:
            asked[name] *= momentum
            for j in range(3):
                asked[name][j] += gradient(j, t)[name]
        for z in (2 * t, 2 * t + 1):
            g = gradient(z, t)
            for name in names:
                expected[:, z] += 0.1 / 2 * (asked[name] * g[name]).flatten(1).sum(1).numpy()
    assert np.allclose(found.scores["tracin"], expected, rtol=1e-10, atol=1e-13)
    assert np.abs(found.completeness["ideal"]["residual"]).max() < 1e-9
