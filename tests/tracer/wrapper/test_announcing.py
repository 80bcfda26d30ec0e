"""Micro-batches as trainers announce them: in closures, before zero_grad, skipped, forgotten."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tracer import TracingOptimizer, open_log
from tracer.errors import TracingWarning

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = [(x, int(x[0] > 0)) for x in X]


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 2)).double()


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


TASK = Task(build, loss, train=DATA, test=DATA)


class Trainer:
    """Lightning's automatic optimization: forward, zero_grad and backward run in a closure."""

    def __init__(self, path, *, every=1, first=False, clip=None, seen=True, forget=False):
        self.model, self.every, self.first, self.clip = build(), every, first, clip
        self.seen, self.forget = seen, forget
        self.inner = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.path, self.optimizer = path, self.inner
        if path is not None:
            self.optimizer = TracingOptimizer(self.inner, self.model, path)

    def training_step(self, k, ids):
        tells = self.path is not None and not (self.forget and k % self.every == 0)
        if tells and self.first:
            self.optimizer.observe(ids)
        batch = TASK.collate([DATA[i] for i in ids])
        call = self.model if self.seen else self.model.forward
        found = F.cross_entropy(call(batch[0]), batch[1]) / self.every
        if tells and not self.first:
            self.optimizer.observe(ids)
        return found

    def closure(self, k, ids):
        def evaluate():
            found = self.training_step(k, ids)
            if k % self.every == 0:
                self.optimizer.zero_grad()
            found.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            return found

        return evaluate

    def fit(self):
        torch.manual_seed(3)
        for k in range(8):
            evaluate = self.closure(k, [2 * k, 2 * k + 1])
            if k % self.every == self.every - 1:
                with torch.no_grad():
                    self.optimizer.step(closure=torch.enable_grad()(evaluate))
            else:
                evaluate()
        if self.path is not None:
            self.optimizer.close()
        return [p.detach() for p in self.model.parameters()]


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_a_trainer_that_does_all_in_a_closure(path, every, first, clip):
    how = {"every": every, "first": first, "clip": None if every > 1 else clip}
    traced = Trainer(path, **how).fit()
    assert all(map(torch.equal, traced, Trainer(None, **how).fit()))
    with open_log(path) as log:
        assert len(log) == 8 // every
        assert log.batch_ids(1) == [2 * every + k for k in range(2 * every)]
        batches = log.step(1).micro_batches
        assert [b.coefficients.tolist() for b in batches] == [[0.5 / every] * 2] * every
    assert Replay(path, task=TASK).verify(progress=False)  # dropout, too


@pytest.mark.parametrize("first", [False, True])
def test_likewise_where_the_model_is_not_seen(path, first):
    Trainer(path, every=2, first=first, seen=False).fit()
    with open_log(path) as log:
        assert [log.batch_ids(t) for t in range(4)] == [
            [4 * t + k for k in range(4)] for t in range(4)
        ]


@pytest.mark.parametrize("first", [False, True])
def test_a_micro_batch_that_nobody_announced_is_said(path, first):
    with pytest.warns(TracingWarning) as caught:
        Trainer(path, every=2, first=first, forget=True).fit()
    assert [str(one.message).split("\n")[0] for one in caught] == [
        "the gradients of 2 forward and backward passes went into step 0, and the IDs of 1 "
        "micro-batch were announced."
    ]
    assert "\n1. With accumulation, call optimizer.observe(ids) once for each micro-batch" in str(
        caught[0].message
    )


def forward(model, optimizer, ids):
    optimizer.observe(ids)
    return loss(model, TASK.collate([DATA[i] for i in ids])).mean()


def held_by_a_name(model, optimizer, kept):
    kept.append(forward(model, optimizer, [8, 9]))  # no backward: its loss is not finite


def let_go(model, optimizer, kept):
    forward(model, optimizer, [8, 9])


def after_backward(model, optimizer, kept):
    forward(model, optimizer, [8, 9]).backward()


def before_its_forward(model, optimizer, kept):
    optimizer.observe([8, 9])


@pytest.mark.parametrize("zero", ["optimizer", "model", "zeros"])
@pytest.mark.parametrize(
    "skip",
    [held_by_a_name, let_go, after_backward, before_its_forward],
    ids=lambda skip: skip.__name__,
)
def test_a_batch_that_is_skipped_leaves_nothing_behind(path, skip, zero):
    model, kept = build(), []
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    if zero == "model" and skip is before_its_forward:
        return  # nobody can know then whether it is a part of the next forward
    zeroing = {
        "optimizer": lambda: optimizer.zero_grad(),
        "model": model.zero_grad,
        "zeros": lambda: optimizer.zero_grad(set_to_none=False),
    }[zero]
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(3):
            if t == 1:
                zeroing()
                skip(model, optimizer, kept)
            zeroing()
            forward(model, optimizer, [t, t + 1]).backward()
            optimizer.step()
    with open_log(path) as log:
        assert [log.batch_ids(t) for t in range(3)] == [[0, 1], [1, 2], [2, 3]]
        assert log.step(1).micro_batches[0].coefficients.tolist() == [0.5, 0.5]
    assert Replay(path, task=TASK).verify(progress=False)


def test_a_closure_that_runs_several_times_is_one_step(path):
    """As with L-BFGS: the first run is the step's."""
    model = build()
    inner = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def evaluate():
        found = forward(model, optimizer, [0, 1, 2])
        optimizer.zero_grad()
        found.backward()
        states.append(torch.get_rng_state())
        return found

    with TracingOptimizer(inner, model, path) as optimizer:
        for _ in range(2):
            begins, states = torch.get_rng_state(), []
            optimizer.step(evaluate)
            assert len(states) > 1
    with open_log(path) as log:
        assert [log.batch_ids(t) for t in range(2)] == [[0, 1, 2], [0, 1, 2]]
        assert torch.equal(log.step(1).micro_batches[0].random_state.cpu, begins)


def joined(model, ids):
    (model(X[ids]).sum() + model(X[ids]).sum()).backward()  # two views of the same examples


def apart(model, ids):
    model(X[ids]).sum().backward()
    model(X[ids]).sum().backward()


def perturbed(model, ids):
    """As adversarial training does, where zeroed gradients of the step before are there."""
    x = X[ids].requires_grad_()
    (toward,) = torch.autograd.grad(model(x).sum(), x)
    model((x + 0.1 * toward.sign()).detach()).sum().backward()


@pytest.mark.parametrize(("way", "said"), [(joined, False), (perturbed, False), (apart, True)])
def test_two_forwards_of_one_micro_batch(path, way, said):
    model = build()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with TracingOptimizer(inner, model, path) as optimizer:
        way(model, [0, 1])
        expected = pytest.warns(TracingWarning, match="add their losses and call backward")
        with expected if said else contextlib.nullcontext():
            optimizer.step(batch_ids=[0, 1])
