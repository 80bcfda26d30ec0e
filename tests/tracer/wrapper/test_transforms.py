"""The traced model inside ``torch.func``, modes and swaps: trained bitwise as without tracing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tracer import TracingOptimizer, open_log


class Model(nn.Module):
    """Its forward reads a buffer and moves it, and drops out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        h = self.first(x)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return self.last(nn.functional.dropout(h - self.mean, 0.5))


def loss(out):
    return out.square().mean()


def copies(model):
    """Return copies of parameters and buffers."""
    return [
        {name: t.detach().clone() for name, t in some}
        for some in (model.named_parameters(), model.named_buffers())
    ]


def with_parameters(model, x):
    scaled = {name: 1.5 * p for name, p in model.named_parameters()}
    loss(functional_call(model, (scaled, dict(model.named_buffers())), x)).backward()


def with_buffers(model, x):
    loss(functional_call(model, {"mean": model.mean + 1}, x)).backward()


def with_another_dtype(model, x):
    half = {name: t.double() for some in copies(model) for name, t in some.items()}
    loss(functional_call(model, half, x.double())).item()
    loss(model(x)).backward()


def by_func_grad(model, x):
    parameters, buffers = copies(model)
    found = grad(lambda p: loss(functional_call(model, (p, buffers), x)))(parameters)
    for name, p in model.named_parameters():
        p.grad = found[name]


def vmapped(model, x):
    parameters, buffers = copies(model)

    def one(p, row):
        return loss(functional_call(model, (p, dict(buffers)), row[None]))

    vmap(grad(one), in_dims=(None, 0), randomness="different")(parameters, x)
    loss(model(x)).backward()


def copied(model, x):
    copy.deepcopy(model)(x)
    loss(model(x)).backward()


def swapped(model, x):
    for p in model.parameters():
        p.data = p.data.clone()
    loss(model(x)).backward()


def hidden(model, x):
    """As shards do that are gathered for a forward."""
    data = [p.data for p in model.parameters()]
    for p in model.parameters():
        p.data = torch.empty(0)

    def gather(*_):
        for p, one in zip(model.parameters(), data, strict=True):
            p.data = one

    handle = model.first.register_forward_pre_hook(gather)
    loss(model(x)).backward()
    handle.remove()


def replaced(model, x):
    """As wrappers do that put plain tensors in the places of parameters."""
    own = [(m, n, p) for m in model.modules() for n, p in m._parameters.items()]
    for module, name, p in own:
        del module._parameters[name]
        setattr(module, name, p.view_as(p))
    loss(model(x)).backward()
    for module, name, p in own:
        delattr(module, name)
        module._parameters[name] = p


def faked(model, x):
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.randn(5, 3))
    model.mean = torch.zeros(6)
    loss(model(x)).backward()


class Counting(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        Counting.count += 1
        return function(*arguments, **(named or {}))


def counted(model, x):
    with Counting():
        loss(model(x)).backward()


def recomputed(model, x):
    loss(checkpoint(model, x, use_reentrant=False)).backward()


def train(case, path=None):
    """Return what training leaves, and the buffers and random state before each pass."""
    model, before = Model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if path is not None:
        optimizer = TracingOptimizer(optimizer, model, path)
    torch.manual_seed(1)
    Counting.count = 0
    for _ in range(3):
        x = torch.randn(5, 3)
        optimizer.zero_grad()
        before.append((model.mean.clone(), torch.get_rng_state()))
        case(model, x)
        optimizer.step(**({} if path is None else {"batch_ids": range(5)}))
    if path is not None:
        optimizer.close()
    after = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
    return [t.detach().clone() for t in after], Counting.count, before


CASES = [with_parameters, with_buffers, with_another_dtype, by_func_grad, vmapped, copied, swapped]
CASES += [hidden, replaced, faked, counted, recomputed]
OTHERS_FIRST = (with_another_dtype, vmapped, copied, faked)  # forwards that the step does not use


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_training_and_its_log_are_right(path, case):
    after, count, before = train(case)
    traced, traced_count, traced_before = train(case, path)
    assert traced_count == count
    assert all(map(torch.equal, traced, after))
    with open_log(path) as log:
        assert len(log) == 3
        for t, (mean, state) in enumerate(before):
            assert torch.equal(traced_before[t][0], mean)
            if case not in OTHERS_FIRST:
                assert torch.equal(log.buffers(t)["mean"], mean)
                assert torch.equal(log.step(t).micro_batches[0].random_state.cpu, state)
