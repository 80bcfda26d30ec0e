"""A traced run is bitwise the untraced one: parameters, optimizer state, random state."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from tests.helpers.comparing import same
from tracer import TracingOptimizer, open_log

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
STEPS = 6

MODELS = {
    "dropout": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3)),
    "batchnorm": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}
SCHEDULERS = {
    "none": None,
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=STEPS + 1),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
}


def train(path, model, optimizer, step, scheduler=None):
    """Train with or without tracing; return everything that training leaves behind."""
    torch.manual_seed(0)
    net = MODELS[model]()
    inner = OPTIMIZERS[optimizer](net.parameters())
    traced = path is not None
    wrapped = TracingOptimizer(inner, net, path) if traced else contextlib.nullcontext(inner)
    with wrapped as opt:
        plan = scheduler(opt) if scheduler else None
        for t in range(STEPS):
            ids = list(range(5 * t, 5 * t + 5))
            loss = step(net, opt, ids, {"batch_ids": ids} if traced else {})
            if isinstance(plan, lr_scheduler.ReduceLROnPlateau):
                plan.step(loss)
            elif plan is not None:
                plan.step()
    return (
        copy.deepcopy(net.state_dict()),
        inner.state_dict(),
        torch.get_rng_state(),
        [p.grad for p in net.parameters()],
    )


def losses(net, ids):
    return F.cross_entropy(net(X[ids]), Y[ids])


def plain(net, opt, ids, more):
    opt.zero_grad()
    loss = losses(net, ids)
    loss.backward()
    opt.step(**more)
    return loss.detach()


def clipped(net, opt, ids, more):
    opt.zero_grad()
    losses(net, ids).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    opt.step(**more)


def clipped_by_us(net, opt, ids, more):
    opt.zero_grad()
    losses(net, ids).backward()
    if more:
        opt.clip_grad_norm_(0.1)
    else:
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    opt.step(**more)


def with_closure(net, opt, ids, more):
    def closure():
        opt.zero_grad()
        loss = losses(net, ids)
        loss.backward()
        return loss

    assert opt.step(closure, **more).requires_grad


def round_trip(net, opt, ids, more):
    opt.load_state_dict(opt.state_dict())
    plain(net, opt, ids, more)


def set_to_zero(net, opt, ids, more):
    opt.zero_grad(set_to_none=False)
    losses(net, ids).backward()
    opt.step(**more)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_schedulers(tmp_path, model, optimizer, scheduler):
    path, make = tmp_path / "run.h5", SCHEDULERS[scheduler]
    traced = train(path, model, optimizer, plain, make)
    same(traced, train(None, model, optimizer, plain, make))
    assert len(open_log(path)) == STEPS


@pytest.mark.parametrize(
    "step",
    [clipped, clipped_by_us, with_closure, round_trip, set_to_zero],
    ids=lambda step: step.__name__,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ways_to_step(tmp_path, optimizer, step):
    path = tmp_path / "run.h5"
    traced = train(path, "dropout", optimizer, step)
    same(traced, train(None, "dropout", optimizer, step))
    with open_log(path) as log:
        assert len(log) == STEPS
        assert all(s.micro_batches[0].random_state is not None for s in log.steps())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_grad_scaler(tmp_path, optimizer, dtype):
    def run(path):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

        def step(net, opt, ids, more):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = losses(net, ids)
            bad = float("inf") if ids[0] == 10 else 1.0  # step 2 overflows and is skipped
            scaler.scale(loss * bad).backward()
            scaler.step(opt, **more)
            scaler.update()

        return train(path, "dropout", optimizer, step)

    path = tmp_path / "run.h5"
    same(run(path), run(None))
    with open_log(path) as log:
        assert [ids[0] for ids in map(log.batch_ids, range(len(log)))] == [0, 5, 15, 20, 25]


def test_fused_optimizer_skips_by_itself(tmp_path):
    def run(path):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        torch.manual_seed(0)
        net = MODELS["dropout"]()
        inner = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
        wrapped = TracingOptimizer(inner, net, path) if path else contextlib.nullcontext(inner)
        norms = []
        with wrapped as opt:
            for t in range(4):
                opt.zero_grad()
                bad = float("inf") if t == 2 else 1.0
                scaler.scale(losses(net, [t, t + 1]) * bad).backward()
                grads = torch.cat([p.grad.flatten() for p in net.parameters()])
                norms.append(grads.norm().item() / scaler.get_scale())
                scaler.step(opt, **({"batch_ids": [t, t + 1]} if path else {}))
                scaler.update()
        return net.state_dict(), torch.get_rng_state(), norms

    path = tmp_path / "run.h5"
    traced = run(path)
    same(traced[:2], run(None)[:2])
    with open_log(path) as log:
        assert [log.batch_ids(t)[0] for t in range(len(log))] == [0, 1, 3]
        assert log.step(0).gradient_norm == pytest.approx(traced[2][0], rel=1e-5)


def test_hooks_fire_once(tmp_path):
    torch.manual_seed(0)
    net = MODELS["dropout"]()
    calls = []
    with TracingOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.1), net, tmp_path / "run.h5"
    ) as opt:
        opt.register_step_pre_hook(lambda *_: calls.append("before"))
        opt.register_step_post_hook(lambda *_: calls.append("after"))
        opt.register_state_dict_post_hook(lambda *_: calls.append("state"))
        plain(net, opt, [0, 1], {"batch_ids": [0, 1]})
        opt.state_dict()
    assert calls == ["before", "after", "state"]
