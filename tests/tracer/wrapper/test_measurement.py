"""What is looked up once stays right when groups and hyperparameters change."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from tracer.watch.measurement import Measurement


def measured(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model[0].parameters(), **options)
    return model, optimizer, partial(Measurement(optimizer, model).seen, optimizer)


def numbers(measurement, key, group=0):
    return measurement().groups[group].hyperparameters[key]


def test_assigned_numbers():
    _, optimizer, measurement = measured(lr=0.1)
    assert numbers(measurement, "lr") == 0.1
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.param_groups[0]["betas"] = (0.5, 0.6)
    assert numbers(measurement, "lr") == 0.2
    assert numbers(measurement, "betas.1") == 0.6


def test_numbers_changed_in_place():
    rate = torch.tensor(0.5)
    _, optimizer, measurement = measured(lr=rate, capturable=True)
    optimizer.param_groups[0]["betas"] = [0.5, 0.6]
    assert numbers(measurement, "lr") == 0.5
    rate.fill_(0.25)
    assert numbers(measurement, "lr") == 0.25
    optimizer.param_groups[0]["lr"] = 0.1
    assert numbers(measurement, "betas.0") == 0.5
    optimizer.param_groups[0]["betas"][0] = 0.75
    assert numbers(measurement, "betas.0") == 0.75


def test_groups_that_change():
    model, optimizer, measurement = measured(lr=0.1)
    assert [group.names for group in measurement().groups] == [("0.weight", "0.bias")]
    optimizer.add_param_group({"params": [model[1].weight], "lr": 0.3})
    assert [group.names for group in measurement().groups][1] == ("1.weight",)
    assert numbers(measurement, "lr", 1) == 0.3
    optimizer.param_groups[1]["params"] = [model[1].bias]  # as many as before
    assert [group.names for group in measurement().groups][1] == ("1.bias",)


@pytest.mark.parametrize("missing", [None, "0.bias", "1.weight"])
def test_norms_by_group(missing):
    model, optimizer, measurement = measured(lr=0.1)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    for name, p in model.named_parameters():
        p.grad = None if name == missing else torch.randn_like(p)
    with torch.no_grad():
        found = measurement().gradients
    assert found.without == {missing} - {None}
    groups = measurement().groups
    for layer, group, plain in zip(model, found.of(groups), groups, strict=True):
        assert (group.names, group.hyperparameters) == (plain.names, plain.hyperparameters)
        assert plain.norms == ()  # frozen: another record has them
        there = [p.grad for p in layer.parameters() if p.grad is not None]
        whole = float(torch.cat([g.flatten() for g in there]).norm())
        assert group.gradient_norm == pytest.approx(whole, rel=1e-6)
        for parameter, norm in zip(layer.parameters(), group.norms, strict=True):
            if parameter.grad is None:
                assert math.isnan(norm)
            else:
                assert norm == pytest.approx(float(parameter.grad.norm()), rel=1e-6)


def test_a_gradient_that_is_no_number_shows_in_the_norm():
    model, _, measurement = measured(lr=0.1)
    for p in model[0].parameters():
        p.grad = torch.full_like(p, torch.nan)
    with torch.no_grad():
        (group,) = measurement().gradients.of(measurement().groups)
    assert math.isnan(group.gradient_norm)
