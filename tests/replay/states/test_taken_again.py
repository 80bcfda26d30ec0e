"""Loops of all sorts, taken again: each step's digest says whether it is the run's."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from replay.states.opening import taken_again
from replay.task import Task
from tests.helpers.sparse import data, loss, mlp
from tracer import TracingOptimizer, open_log
from tracer.errors import LogError, TracingError, TracingWarning, UnsupportedRuleError
from tracer.log.write.writer import LogWriter

X, Y = data()
STEPS = 7


class Lion(torch.optim.Optimizer):
    """Somebody's optimizer, whose constructor takes no rate of 0."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.99)):
        assert lr > 0
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step."""
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                first, second = group["betas"]
                p.sub_((m * first + p.grad * (1 - first)).sign(), alpha=group["lr"])
                m.mul_(second).add_(p.grad, alpha=1 - second)


class Odd(torch.optim.SGD):
    """One whose constructor wants more than its groups hold."""

    def __init__(self, params, rank):
        super().__init__(params, lr=0.1 / rank)


class Unstorable(torch.optim.SGD):
    """One whose state no log stores."""

    def step(self, closure=None):
        """Take a step."""
        super().step()
        self.state[self.param_groups[0]["params"][0]]["x"] = len


class Counting(nn.Module):
    """A model that replaces its buffers in every forward."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        """Return scores less their running mean."""
        y = self.a(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return y - self.mean


class Tied(nn.Module):
    """A model that uses a weight twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        """Return scores of three classes."""
        return self.out(torch.relu(self.b(torch.relu(self.a(x)))))


def own_loss(model, batch):
    x, y = batch
    dtype = next(model.parameters()).dtype
    return loss(lambda x: model(x.to(dtype)).float(), (x, y))


def gradients(optimizer, model, t, size=6):
    ids = torch.randperm(40)[:size]
    optimizer.zero_grad(set_to_none=t % 2 == 0)
    task_loss(model, ids).mean().backward()
    return ids


def task_loss(model, ids):
    return own_loss(model, (X[ids], Y[ids]))


def plain(optimizer, model, t):
    optimizer.step(batch_ids=gradients(optimizer, model, t))


def clipped(clip):
    def loop(optimizer, model, t):
        ids = gradients(optimizer, model, t)
        clip(optimizer, list(model.parameters()), t)
        optimizer.step(batch_ids=ids)

    return loop


def closure(optimizer, model, t):
    ids = torch.randperm(40)[:6]

    def evaluate():
        optimizer.zero_grad()
        value = task_loss(model, ids).mean()
        value.backward()
        return value

    optimizer.step(evaluate, batch_ids=ids)


def weighted(optimizer, model, t):
    optimizer.zero_grad()
    for size in (6, 3, 9):
        ids, weights = torch.randperm(40)[:size], torch.rand(size)
        optimizer.observe(ids, weights=weights)
        (task_loss(model, ids) * weights).sum().backward()
    optimizer.step()


def together(optimizer, model, t):
    optimizer.zero_grad()
    parts = []
    for _ in range(1 if t == 0 else 3):  # how three are joined is not seen from the first step
        ids = torch.randperm(40)[:6]
        optimizer.observe(ids)
        parts.append(task_loss(model, ids).mean())
    (sum(parts) / len(parts)).backward()
    optimizer.step()


def regrouped(optimizer, model, t):
    if t == 3:
        new = {"params": [*model[3].parameters()], "lr": 0.03, "momentum": 0.5, "nesterov": True}
        optimizer.add_param_group(new)
    model[0].weight.requires_grad_(not 4 <= t < 6)
    plain(optimizer, model, t)


def scaled(optimizer, model, t):
    if t == 0:
        optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler, ids = optimizer.scaler, torch.randperm(40)[:6]
    optimizer.zero_grad()
    scaler.scale(task_loss(model, ids).mean() * (float("inf") if t == 2 else 1)).backward()
    scaler.step(optimizer, batch_ids=ids)
    scaler.update()


def scheduled(optimizer, model, t):
    for group in optimizer.param_groups:
        group["betas"], group["lr"] = (0.9 - 0.01 * t, 0.99), torch.tensor(0.01 / (t + 1))
    plain(optimizer, model, t)


def warmed_up(optimizer, model, t):
    optimizer.param_groups[0]["lr"] = 0.001 * t
    plain(optimizer, model, t)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model, **how):
    return torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), **how)


def by_layer(model):
    groups = [{"params": [*layer.parameters()]} for layer in (model[0], model[3])]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def lbfgs(model, **how):
    return torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=4, **how)


ODD_LIMIT = clipped(lambda o, ps, t: clip_grad_norm_(ps, 0.1234567 * (1 + t / 10)))
LOOPS = {
    "class-of-ones-own": (mlp, lambda m: Lion(m.parameters()), warmed_up),
    "lbfgs": (mlp, lbfgs, closure),
    "lbfgs-line-search": (mlp, lambda m: lbfgs(m, line_search_fn="strong_wolfe"), closure),
    "adam-closure": (mlp, adam, closure),
    "groups-added-and-frozen": (mlp, lambda m: sgd(m[0]), regrouped),
    "grad-scaler": (mlp, lambda m: adam(m, fused=True), scaled),
    "weighted": (mlp, sgd, weighted),
    "one-backward": (mlp, sgd, together),
    "scheduled-betas": (mlp, adam, scheduled),
    "bfloat16": (
        lambda: mlp().bfloat16(),
        adam,
        clipped(lambda o, ps, t: clip_grad_norm_(ps, 0.3)),
    ),
    "buffers-replaced": (Counting, sgd, plain),
    "tied": (Tied, sgd, plain),
    "clipped-max-norm": (mlp, sgd, clipped(lambda o, ps, t: clip_grad_norm_(ps, 0.01, torch.inf))),
    "clipped-sum-norm": (mlp, sgd, clipped(lambda o, ps, t: clip_grad_norm_(ps, 0.5, 1.0))),
    "clipped-odd-limit": (mlp, sgd, ODD_LIMIT),
    "clipped-values": (mlp, sgd, clipped(lambda o, ps, t: clip_grad_value_(ps, 0.01))),
    "clipped-groups": (
        mlp,
        by_layer,
        clipped(lambda o, ps, t: [clip_grad_norm_(g["params"], 0.1) for g in o.param_groups]),
    ),
    "clipped-each": (mlp, sgd, clipped(lambda o, ps, t: [clip_grad_norm_([p], 0.05) for p in ps])),
}


def trace(path, build, optimizer, loop, every=STEPS, **how):
    torch.manual_seed(7)
    model = build()
    with TracingOptimizer(optimizer(model), model, path, snapshot_every=every, **how) as tracing:
        for t in range(STEPS):
            loop(tracing, model, t)


def states_of(path, build):
    task = Task(build, own_loss, train=list(zip(X, Y, strict=True)), test={})
    return taken_again(open_log(path), task, torch.device("cpu"), 1 << 20)


@pytest.mark.parametrize("name", LOOPS)
def test_every_step_is_proved(tmp_path, name):
    build, optimizer, loop = LOOPS[name]
    trace(tmp_path / "run.h5", build, optimizer, loop)
    states = states_of(tmp_path / "run.h5", build)
    assert states.point(0)
    assert states.point(states.last)
    assert (sorted(states.proved), states.unproved) == (list(range(states.last)), set())


def _wide():
    return nn.Sequential(nn.Linear(12, 3000), nn.ReLU(), nn.Dropout(0.3), nn.Linear(3000, 3))


def _inside(model):
    class Local(torch.optim.SGD):
        pass

    return Local(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        (
            lambda m: Odd(m.parameters(), 3),
            "Odd wants the argument 'rank', which its parameter gro",
        ),
        (_inside, "the optimizer's class _inside.<locals>.Local is defined inside another thing"),
    ],
)
def test_a_class_that_cannot_be_made_again_is_refused_at_once(tmp_path, optimizer, why, capsys):
    with pytest.raises(TracingError, match=rf"(?s){why}.*1\. Pass snapshot_every=1"):
        trace(tmp_path / "run.h5", mlp, optimizer, plain, every=5)
    trace(tmp_path / "small.h5", mlp, optimizer, plain, every="auto")  # dense anyway
    assert open_log(tmp_path / "small.h5").is_dense
    trace(tmp_path / "wide.h5", _wide, optimizer, plain, every="auto")
    assert open_log(tmp_path / "wide.h5").is_dense
    assert f"parameters of every step ({why}" in capsys.readouterr().err


def test_a_class_of_the_script_is_looked_for_in_the_tasks_file(tmp_path):
    Script = type("Script", (Lion,), {"__module__": "__main__"})
    trace(tmp_path / "run.h5", mlp, lambda m: Script(m.parameters()), plain)
    with pytest.raises(UnsupportedRuleError, match=r"1\. put the class into the task's file"):
        states_of(tmp_path / "run.h5", mlp)
    globals()["Script"] = Script
    try:
        states_of(tmp_path / "run.h5", mlp)
    finally:
        del globals()["Script"]


def test_a_state_that_cannot_be_stored_is_said(tmp_path):
    with pytest.warns(
        TracingWarning, match=r"(?s)From step 4 on, .* steps again .*\n1\. Pass snap"
    ):
        trace(tmp_path / "run.h5", mlp, lambda m: Unstorable(m.parameters(), 0.1), plain, every=4)
    states = states_of(tmp_path / "run.h5", mlp)
    assert states.stored == {0}
    states.at(states.last)
    assert len(states.proved) == STEPS


def test_epochs_that_are_not_set_are_said(tmp_path):
    with pytest.warns(TracingWarning, match=r"(?s)optimizer.epoch is not set .*\n1\. Set .*\n2\."):
        trace(tmp_path / "run.h5", mlp, sgd, plain, every="epoch")
    assert open_log(tmp_path / "run.h5").states() == [0, STEPS]


def test_parameters_that_the_loop_writes_are_said(tmp_path):
    def clamping(optimizer, model, t):
        plain(optimizer, model, t)
        with torch.no_grad():
            model[0].weight.clamp_(-0.2, 0.2)

    with pytest.warns(TracingWarning, match=r"before step 1, and not step\(\) of.*\n1\. Pass snap"):
        trace(tmp_path / "run.h5", mlp, sgd, clamping)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(tmp_path / "dense.h5", mlp, sgd, clamping, every=1)


def test_a_run_resumes_with_its_own_snapshots(tmp_path):
    trace(tmp_path / "run.h5", mlp, sgd, plain, every=4)
    for every in (1, 3, "auto"):
        with pytest.raises(TracingError, match="its snapshot_every is 4, now it is [13]"):
            trace(tmp_path / "run.h5", mlp, sgd, plain, every=every, resume=True)


@pytest.mark.filterwarnings("ignore::tracer.errors.LogWarning")
def test_a_kill_between_a_step_and_its_state_leaves_no_state_there(tmp_path, monkeypatch):
    """Flushed twice, with other parameters, and killed before the second flush wrote the state."""
    torch.manual_seed(7)
    model = mlp()
    with TracingOptimizer(sgd(model), model, tmp_path / "run.h5", snapshot_every=4) as tracing:
        for t in range(4):
            plain(tracing, model, t)
        tracing.flush()
        assert open_log(tmp_path / "run.h5").states() == [0, 4]
        with torch.no_grad():
            model[0].weight.add_(1)
        monkeypatch.setattr(LogWriter, "state", lambda *_, **__: None)
        tracing.flush()
        shutil.copy(tmp_path / "run.h5", tmp_path / "killed.h5")
        monkeypatch.undo()
    with open_log(tmp_path / "killed.h5") as log:
        assert (len(log), log.states()) == (4, [0])
        with pytest.raises(LogError, match="no snapshot of the parameters before step 4"):
            log.parameters(4)
    states = states_of(tmp_path / "killed.h5", mlp)
    states.at(4)  # a change beside the step is not known
    assert (states.proved, states.unproved) == ({0, 1, 2}, {3})
