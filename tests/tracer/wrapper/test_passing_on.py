"""What an optimizer is given reaches it as it is, whatever its class made of torch's methods."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from torch import nn

from tracer import TracingOptimizer, open_log
from tracer.errors import TracingError


class _Base(torch.optim.SGD):
    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1, momentum=0.9)


class _KeepsZeros(_Base):
    def zero_grad(self, set_to_none=False):
        super().zero_grad(set_to_none)


class _ZeroesWithout(_Base):
    def zero_grad(self):
        super().zero_grad(set_to_none=False)


class _StepsWithout(_Base):
    def step(self):
        return super().step()


class _NeverCalls(_Base):
    def step(self, closure=None):
        return super().step()


class _CallsTwice(_Base):
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        return super().step(closure)


class _MovesFirst(_Base):
    """As SAM does: the closure runs at parameters that are moved, and then moved back."""

    @torch.no_grad()
    def step(self, closure):
        found = self.param_groups[0]["params"]
        moved = [(p, 0.05 * p.grad) for p in found if p.grad is not None]
        for p, by in moved:
            p.add_(by)
        with torch.enable_grad():
            closure()
        for p, by in moved:
            p.sub_(by)
        return super().step()


class _TakesLoss(_Base):
    def step(self, closure=None, *, loss):
        self.param_groups[0]["lr"] = 0.1 if loss > 0.5 else 0.2
        return super().step(closure)


class _Flagged(_Base):
    scale = 1.0

    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.1 * self.scale
        return super().step(closure)


class _More(_Base):
    def state_dict(self, more):
        return {**super().state_dict(), "more": more}

    def load_state_dict(self, state, strict):
        super().load_state_dict({key: state[key] for key in ("state", "param_groups")})

    def add_param_group(self, group, rate=None):
        super().add_param_group(group | ({} if rate is None else {"lr": rate}))


class _Modes(_Base):
    """As schedule-free optimizers: parameters are others while one looks at them."""

    def eval(self):
        self._scale(0.5)

    def train(self):
        self._scale(2.0)

    @torch.no_grad()
    def _scale(self, by):
        for p in self.param_groups[0]["params"]:
            p.mul_(by)


def loss_of(model, t):
    return model[t % 2](torch.randn(2, 3)).square().mean()  # the other layer has no gradient


def plain(t, model, optimizer, ids):
    optimizer.zero_grad()
    loss_of(model, t).backward()
    optimizer.step(**ids)


def closure(t, model, optimizer, ids):
    def evaluate():
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward()
        return loss

    evaluate()
    optimizer.step(evaluate, **ids) if t % 2 else optimizer.step(closure=evaluate, **ids)


def loss(t, model, optimizer, ids):
    optimizer.zero_grad()
    found = loss_of(model, t)
    found.backward()
    optimizer.step(loss=found.item(), **ids)


def flag(t, model, optimizer, ids):
    optimizer.scale = 1.0 + t
    plain(t, model, optimizer, ids)
    del optimizer.scale
    assert optimizer.scale == 1.0


def more(t, model, optimizer, ids):
    if t == 2:
        group = {"params": iter(model[1].parameters())}
        optimizer.add_param_group(group, rate=0.3)
    if t == 1:
        kept = optimizer.state_dict(more=3)
        assert kept.pop("more") == 3
        optimizer.load_state_dict(kept, strict=True)
    plain(t, model, optimizer, ids)
    if t == 1:
        optimizer.load_state_dict(kept, True)  # its tensors are the optimizer's own by now


def modes(t, model, optimizer, ids):
    plain(t, model, optimizer, ids)
    optimizer.eval()
    optimizer.train()


CASES = [
    (_KeepsZeros, plain),
    (_ZeroesWithout, plain),
    (_StepsWithout, plain),
    (_NeverCalls, closure),
    (_CallsTwice, closure),
    (_MovesFirst, closure),
    (_TakesLoss, loss),
    (_Flagged, flag),
    (_More, more),
    (_Modes, modes),
]


def train(kind, loop, path=None):
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    owned = model[0] if kind is _More else model
    inner, rows = kind(owned.parameters()), []
    wrapped = TracingOptimizer(inner, model, path) if path else contextlib.nullcontext(inner)
    with wrapped as optimizer:
        for t in range(5):
            rows.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            loop(t, model, optimizer, {"batch_ids": [t]} if path else {})
    return rows, inner.state_dict(None) if kind is _More else inner.state_dict()


@pytest.mark.parametrize(("kind", "loop"), CASES, ids=lambda one: one.__name__)
def test_a_traced_run_is_bitwise_the_untraced_one(tmp_path, kind, loop):
    path = tmp_path / "run.h5"
    (traced, state), (expected, plain_state) = train(kind, loop, path), train(kind, loop)
    assert all(map(torch.equal, traced, expected))
    assert str(state) == str(plain_state)
    with open_log(path) as log:
        found = [torch.cat([p.flatten() for p in log.parameters(t).values()]) for t in range(5)]
    assert all(map(torch.equal, found, expected))


@pytest.mark.filterwarnings("ignore:.*is closed without a step")
def test_others_see_the_parameters_of_its_methods(path):
    """GradScaler and accelerate look for a name before they pass it."""

    class Named(_Base):
        def step(self, closure=None, grad_scaler=None, **more):
            pass

    layer = nn.Linear(2, 1)
    for kind, name, expected in (
        (Named, "step", ["closure", "grad_scaler", "batch_ids", "batch", "more"]),
        (_ZeroesWithout, "zero_grad", []),
        (_KeepsZeros, "zero_grad", ["set_to_none"]),
        (_More, "add_param_group", ["group", "rate"]),
        (_More, "load_state_dict", ["state", "strict"]),
    ):
        with TracingOptimizer(kind(layer.parameters()), layer, path, overwrite=True) as optimizer:
            assert list(inspect.signature(getattr(optimizer, name)).parameters) == expected


def test_a_closure_that_fails_is_no_end(path):
    """The step was not taken: the log goes on, and IDs that were announced in it are gone."""
    model = nn.Linear(3, 1)

    def evaluate(ids):
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).sum()
        if ids is not None:
            optimizer.observe(ids)
        if ids == [0]:
            raise FloatingPointError
        loss.backward()

    with TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as optimizer:
        with pytest.raises(FloatingPointError):
            optimizer.step(lambda: evaluate([0]))
        before = model.weight.detach().clone()
        with pytest.raises(TracingError, match="got no batch IDs"):
            optimizer.step(lambda: evaluate(None))
        assert torch.equal(model.weight, before)
        optimizer.step(lambda: evaluate([1]))
    with open_log(path) as log:
        assert [log.batch_ids(t) for t in range(len(log))] == [[1]]
