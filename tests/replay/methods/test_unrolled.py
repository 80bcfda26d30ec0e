"""The derivative of the counterfactual, against runs taken again with losses scaled a little."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad

from replay import Replay, Task
from tests.helpers.cases import squared
from tests.helpers.rerun import RUNS, TEST, TRAIN, Rerun
from tests.helpers.rules import BY_NAME, Rule
from tracer import TracingOptimizer, open_log

ONE = torch.ones(TRAIN, dtype=torch.float64)


def unrolled(run, path, *, methods=("unrolled",), memory="2GiB", dtype=None, **how):
    replay = Replay(path, task=run.task(), memory=memory, dtype=dtype)
    return replay.influence(list(range(TEST)), methods=methods, progress=False, **how)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_central_differences(tmp_path, run):
    path = tmp_path / "run.h5"
    run.trained(ONE, path)
    found = unrolled(run, path).scores["unrolled"]
    directions = [torch.randn(TRAIN, generator=torch.Generator().manual_seed(2)).double()]
    directions += [torch.eye(TRAIN, dtype=torch.float64)[z] for z in (1,)]
    for direction in directions:
        expected = -run.differences(direction)
        size = np.abs(found * direction.numpy()).sum(1)
        assert np.all(np.abs(found @ direction.numpy() - expected) <= 1e-6 * size)


def through_the_run(run, task, path):
    """Return ``−∂φ(w_T)/∂s`` by reverse differentiation of a whole SGD run, ``(TEST, TRAIN)``."""
    model = task.model()
    with open_log(path) as log:
        w, buffers = (
            log.parameters(0),
            {n: torch.zeros_like(p) for n, p in log.parameters(0).items()},
        )
        batches = [(log.batch_ids(t), log.learning_rate(t)[0]) for t in range(len(log))]

    def value(scales, j):
        at, velocity = dict(w), dict(buffers)
        for t, (ids, rate) in enumerate(batches):
            batch = task.collate([task.train[i] for i in ids])

            def objective(p, batch=batch, ids=ids):
                return (task.loss(partial(functional_call, model, p), batch) * scales[ids]).mean()

            g = grad(objective)(at)
            decay = run.rule.options["weight_decay"]
            u = {n: g[n] + decay * at[n] for n in g}
            mu = run.rule.options["momentum"]
            velocity = {n: mu * velocity[n] + u[n] for n in u} if t else u
            at = {n: at[n] - rate * (u[n] + mu * velocity[n]) for n in at}
        return task.loss(partial(functional_call, model, at), task.collate([task.test[j]]))[0]

    return -torch.stack([grad(value)(ONE, j) for j in range(TEST)]).numpy()


def test_differentiating_the_whole_run_at_once(tmp_path):
    run = replace(RUNS[4], clip=None, parts=(3,))  # Nesterov with decay, convolutions
    run.trained(ONE, tmp_path / "run.h5")
    found = unrolled(run, tmp_path / "run.h5").scores["unrolled"]
    expected = through_the_run(run, run.task(), tmp_path / "run.h5")
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


class Linear(torch.nn.Module):
    """Its loss is linear in the parameters: no curvature."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x @ self.w


def output(model, batch):
    return model(batch[0])


@pytest.mark.parametrize("rule", ["sgd", "nesterov", "heavy-ball-maximize"])
def test_it_is_tracin_without_curvature(tmp_path, rule):
    options = {k: v for k, v in BY_NAME[rule].options.items() if k != "weight_decay"}
    run = Rerun("", Rule("", torch.optim.SGD, options), Linear, output, parts=(3, 2))
    run.trained(ONE, tmp_path / "run.h5")
    scores = unrolled(run, tmp_path / "run.h5", methods=("tracin", "unrolled")).scores
    assert np.abs(scores["unrolled"] - scores["tracin"]).max() <= 1e-13
    assert np.abs(scores["tracin"]).max() > 0.01


def test_closed_form_of_linear_regression(tmp_path):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(TRAIN + 1, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(TRAIN + 1, generator=generator, dtype=torch.float64)
    data, rate, steps = list(zip(x, y, strict=True)), 0.2, 30

    def build():
        torch.manual_seed(0)
        return torch.nn.Linear(3, 1, bias=False).double()

    task = Task(build, squared, data[:TRAIN], data[TRAIN:])
    model = task.model()
    inner = torch.optim.SGD(model.parameters(), lr=rate)
    with TracingOptimizer(inner, model, tmp_path / "run.h5") as optimizer:
        for _ in range(steps):
            optimizer.zero_grad()
            task.loss(model, (x[:TRAIN], y[:TRAIN])).mean().backward()
            optimizer.step(batch_ids=list(range(TRAIN)))
    found = Replay(tmp_path / "run.h5", task=task).influence(
        [0], methods=("unrolled",), progress=False
    )
    # w_t = w* + M^t (w_0 - w*), M = 1 - rate H; the sum over t of M^(T-1-t) g_i(w_t) in closed form
    a, b = x[:TRAIN], y[:TRAIN]
    hessian = a.mT @ a / TRAIN
    best = torch.linalg.solve(hessian, a.mT @ b / TRAIN)
    start = task.model().weight.detach()[0]
    eigen, v = torch.linalg.eigh(hessian)
    m = 1 - rate * eigen
    last = best + v @ (m**steps * (v.mT @ (start - best)))
    q = v.mT @ (x[TRAIN] * (x[TRAIN] @ last - y[TRAIN]))
    for z in range(TRAIN):
        still = (v.mT @ a[z]) * (a[z] @ best - b[z]) * (1 - m**steps) / (1 - m)
        outer = torch.outer(v.mT @ a[z], (v.mT @ a[z]) * (v.mT @ (start - best)))
        ratio = m[:, None] ** steps - m[None] ** steps
        gap = m[:, None] - m[None]
        weight = torch.where(gap.abs() < 1e-9, steps * m[:, None] ** (steps - 1), ratio / gap)
        moving = (outer * weight).sum(1)
        expected = float(rate / TRAIN * (q @ (still + moving)))
        assert abs(found.scores["unrolled"][0, z] - expected) <= 1e-12 * abs(q).max()
