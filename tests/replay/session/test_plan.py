"""The plan and the estimate that a replay gives before its work."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from replay import Replay, Task
from replay.command.show.plan import plan_table
from tests.helpers.cases import cross_entropy as loss
from tracer import TracingOptimizer
from tracer.errors import InputError


class Network(nn.Module):
    """A convolution, BatchNorm and a transformer layer: what people train."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.head(self.layer(torch.tanh(self.norm(self.conv(x))).mT).mean(1))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "run.h5"
    torch.manual_seed(0)
    data = [(torch.randn(3, 5).double(), torch.tensor(k % 3)) for k in range(20)]
    task = Task(lambda: Network().double(), loss, data[:12], data[12:])
    model = task.model()
    with TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as optimizer:
        for t in range(6):
            ids = [(4 * t + k) % 12 for k in range(4)]
            optimizer.zero_grad()
            loss(model, task.collate([data[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    return path, task


def test_plan_names_every_parameter(network):
    path, task = network
    plan = {row.name: row for row in Replay(path, task=task).plan()}
    assert set(plan) == {name for name, _ in Network().named_parameters()}
    assert plan["conv.weight"].train.startswith("complete: rows of its convolution")
    assert plan["conv.weight"].test == "convolution"
    assert plan["norm.weight"].train == plan["norm.weight"].test == "norm scale"
    assert plan["layer.self_attn.in_proj_weight"].train == "linear"
    unused = plan["unused"]
    assert (unused.train, unused.test) == ("no gradient in step 0", "no gradient")
    assert plan["head.weight"].shape == [3, 4]


class Heads(nn.Module):
    """Two heads, of which a batch uses one, a frozen layer, and what only a penalty pulls."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.later = (nn.Linear(3, 2) for _ in range(3))
        self.frozen, self.pulled = nn.Linear(3, 3), nn.Parameter(torch.ones(2))
        self.frozen.requires_grad_(False)

    def forward(self, x, which):
        return (self.first, self.second, self.later)[which](self.frozen(x))


def test_plan_says_why_parameters_have_no_path(tmp_path):
    """Those that only the penalty moves, that are first used later, that are frozen."""
    torch.manual_seed(0)
    data = [(torch.randn(3), torch.tensor(k // 4)) for k in range(12)]

    def headed(model, batch):
        return model(batch[0], int(batch[1][0])).square().sum(1)

    def pull(model):
        return model.pulled.square().sum() + model.first.weight.square().sum()

    task, model = Task(Heads, headed, data, data[8:], penalty=pull), Heads()
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        for micro_batches in (((0, 1), (4, 5)), ((8, 9),)):
            optimizer.zero_grad()
            for ids in micro_batches:
                objective = headed(model, task.collate([data[i] for i in ids])).mean() + pull(model)
                (objective / len(micro_batches)).backward()
                optimizer.observe(ids)
            optimizer.step()
    plan = {row.name: row.train for row in Replay(tmp_path / "run.h5", task=task).plan()}
    assert plan == {
        **{f"{head}.weight": "linear" for head in ("first", "second")},
        **{f"{head}.bias": "bias" for head in ("first", "second")},
        **dict.fromkeys(("later.weight", "later.bias"), "no gradient in step 0"),
        **dict.fromkeys(("frozen.weight", "frozen.bias"), "not moved"),
        "pulled": "only the penalty moves it",
    }


def test_plan_is_fast_under_autocast(tmp_path):
    """Weights are float32, what they are multiplied in is bfloat16."""

    def halved(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(model, batch)

    torch.manual_seed(0)
    data = [(torch.randn(3, 5), torch.tensor(k % 3)) for k in range(20)]
    task = Task(Network, halved, data[:12], data[12:])
    model, path = Network(), tmp_path / "run.h5"
    with TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as optimizer:
        for _ in range(2):
            optimizer.zero_grad()
            halved(model, task.collate(data[:6])).mean().backward()
            optimizer.step(batch_ids=range(6))
    plan = [row for row in Replay(path, task=task).plan() if row.name != "unused"]
    assert not [row for row in plan if row.test.startswith("complete")]
    coupled = {row.name for row in plan if row.train.startswith("complete")}
    assert coupled == {"conv.weight", "conv.bias"}  # by BatchNorm, as without autocast


def test_plan_table_shortens_nothing(network):
    console = Console(width=60, file=io.StringIO())
    console.print(plan_table(Replay(*network).plan()))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert "in_proj_weight"[-4:] in shown


def test_audit_must_be_positive(network):
    with pytest.raises(InputError, match="audit must be a whole number from 1 on, found 0"):
        Replay(*network, audit=0)


def test_tf32_is_left_as_found(network):
    path, task = network
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [kind.allow_tf32 for kind in kinds]
    seen = []

    def spy(model, batch):
        seen.append([kind.allow_tf32 for kind in kinds])
        return loss(model, batch)

    watched = Task(task.model, spy, task.train, task.test)
    for allowed in (False, True):
        seen.clear()
        Replay(path, task=watched, allow_tf32=allowed).drops([0], progress=False)
        assert seen
        assert all(one == [allowed, allowed] for one in seen)
        assert [kind.allow_tf32 for kind in kinds] == before


def test_estimate(network):
    path, task = network
    run = Replay(path, task=task)
    cost = run.estimate([0, 1], methods=("tracin", "ideal", "tracincp"), checkpoints=2)
    assert 0 < cost.seconds < 60
    assert cost.peak_bytes > 1e7
