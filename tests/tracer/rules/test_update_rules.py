"""One definition of each rule: bitwise torch.optim, and the same step as a linear map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracer.rules.filter import Filter
from tracer.rules.torch_rules import RULES, drive
from tracer.watch.measurement import Measurement

O = torch.optim  # noqa: E741
SETTINGS = [
    (O.SGD, {}),
    (O.SGD, {"momentum": 0.9}),
    (O.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    (O.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (O.SGD, {"momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    (O.Adam, {}),
    (O.Adam, {"weight_decay": 0.1}),
    (O.Adam, {"amsgrad": True, "betas": (0.8, 0.9)}),
    (O.Adam, {"maximize": True, "weight_decay": 0.1}),
    (O.Adam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    (O.AdamW, {"weight_decay": 0.1}),
    (O.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    (O.RMSprop, {}),
    (O.RMSprop, {"momentum": 0.9, "weight_decay": 0.1}),
    (O.RMSprop, {"momentum": 0.9, "centered": True}),
    (O.RMSprop, {"centered": True, "maximize": True}),
    (O.Adagrad, {}),
    (O.Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}),
    (O.Adagrad, {"initial_accumulator_value": 0.3, "maximize": True}),
]


def name(setting):
    return setting.__name__ if isinstance(setting, type) else "-".join(setting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize(("kind", "options"), SETTINGS, ids=name)
def test_update_is_bitwise_torch(kind, options, foreach, dtype):
    torch.manual_seed(0)
    model = nn.Linear(7, 5).to(dtype)
    optimizer = kind(model.parameters(), lr=0.03, foreach=foreach, **options)
    rule, measured = RULES[kind.__name__], Measurement(optimizer, model)
    w = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {n: {} for n in w}
    for t in range(8):
        optimizer.param_groups[0]["lr"] = 0.03 / (1 + t)
        numbers = measured.groups()[0].hyperparameters
        for n, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            w[n], state[n] = rule.update(w[n], p.grad.clone(), state[n], numbers)
        optimizer.step()
        for n, p in model.named_parameters():
            assert torch.equal(p.detach(), w[n])
            for key, value in optimizer.state[p].items():
                assert value is None or torch.equal(value, state[n][key]), key


@pytest.mark.parametrize(("kind", "options"), SETTINGS, ids=name)
def test_filter_is_the_update(kind, options):
    torch.manual_seed(0)
    model = nn.Linear(7, 5).double()
    optimizer = kind(model.parameters(), lr=0.03, **options)
    rule, measured = RULES[kind.__name__], Measurement(optimizer, model)
    w, state, buffer = model.weight.detach().clone(), {}, None
    for _ in range(5):
        numbers = measured.groups()[0].hyperparameters
        gradient = torch.randn_like(w)
        after, state = rule.update(w, gradient, state, numbers)
        found = rule.filter(state, numbers, first=buffer is None)
        move, buffer = found.forward(drive(w, gradient, numbers, found.coupled), buffer)
        whole = move + found.decoupled * w
        assert torch.allclose(w - after, whole, rtol=1e-12, atol=1e-15)
        w = after


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(
    "weights", [(0.3, 0.0, 1.0, 0.0), (0.0, 0.7, 0.9, 0.1), (1.1, 0.4, 0.5, 2)]
)
def test_backward_is_the_transpose_of_forward(inside, outside, weights):
    generator = torch.Generator().manual_seed(1)
    u, b, q, asked, d, e = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    rule = Filter(*weights, d if inside else None, e if outside else None)
    move, buffer = rule.forward(u, b)
    left = q @ move + asked @ buffer
    later = asked.clone()[None]
    of_u, scale = rule.backward(q[None], later)
    right = scale * of_u[0] @ u + rule.keep * later[0] @ b
    assert torch.allclose(left, right, rtol=1e-13)
