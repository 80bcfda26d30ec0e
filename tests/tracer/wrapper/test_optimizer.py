"""What the wrapper logs of a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.wrapping import X, Y, backward, build, sgd
from tracer import TracingOptimizer, TracingSGD, open_log
from tracer.errors import TracingError


def test_what_is_logged(path):
    model = build()
    expected = []
    with TracingSGD(sgd(model, weight_decay=0.2), model, path, task="a.b:task") as optimizer:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for t in range(3):
            optimizer.epoch = t // 2
            optimizer.zero_grad()
            backward(model, [t, t, 5])
            expected.append({n: p.detach().clone() for n, p in model.named_parameters()})
            optimizer.step(batch_ids=[t, t, 5])
            scheduler.step()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    expected.append({n: p.detach().clone() for n, p in model.named_parameters()})
    with open_log(path) as log:
        assert len(log) == 3
        assert [log.batch_ids(t) for t in range(3)] == [[0, 0, 5], [1, 1, 5], [2, 2, 5]]
        # the rate that the step used, before the scheduler moves it
        assert [log.learning_rate(t) for t in range(3)] == [(0.1,), (0.05,), (0.025,)]
        for t, parameters in enumerate(expected):
            found = log.parameters(t)
            assert list(found) == list(parameters)
            assert all(torch.equal(found[n], parameters[n]) for n in parameters)
        steps = list(log.steps())
        assert [step.epoch for step in steps] == [0, 0, 1]
        assert steps[2].groups[0].hyperparameters["weight_decay"] == 0.2
        assert steps[2].groups[0].hyperparameters["momentum"] == 0
        assert steps[2].gradient_norm == pytest.approx(norm, rel=1e-6)
        assert steps[0].micro_batches[0].coefficients.tolist() == [1 / 3] * 3
        assert log.metadata["task"] == "a.b:task"
        assert log.metadata["update_rule"] == "SGD"
        assert log.metadata["optimizer"] == "torch.optim.SGD"
        assert log.metadata["closed"] is True
        with pytest.raises(IndexError, match="holds 3 steps; there is no number 3"):
            log.step(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_frozen_and_missing_gradients(path, dtype):
    model = build().to(dtype)
    model.spare = nn.Linear(2, 2).to(dtype)  # in the optimizer, never used
    model[0].weight.requires_grad_(False)
    with TracingSGD(sgd(model), model, path) as optimizer:
        F.cross_entropy(nn.Sequential(*list(model)[:4])(X.to(dtype)), Y).backward()
        optimizer.step(batch_ids=range(12))
    with open_log(path) as log:
        step = log.step(0)
        assert step.frozen == {"0.weight"}
        assert step.without_gradient == {"0.weight", "spare.weight", "spare.bias"}
        assert log.parameter_layout["3.weight"] == (torch.Size([3, 5]), dtype)
        assert step.micro_batches[0].random_state is None  # the model itself was not called


def test_groups_added_later(path):
    model = build()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with TracingSGD(first, model, path) as optimizer:
        for t in range(2):
            if t == 1:
                optimizer.add_param_group({"params": model[3].parameters(), "lr": 0.5})
            optimizer.zero_grad()
            backward(model, [t])
            optimizer.step(batch_ids=[t])
        with pytest.raises(TracingError, match="does not have"):
            optimizer.add_param_group({"params": nn.Parameter(torch.zeros(1))})
    with open_log(path) as log:
        assert log.learning_rate(0) == (0.1,)
        assert log.learning_rate(1) == (0.1, 0.5)
        assert [g.names for g in log.step(1).groups] == [
            ("0.weight", "0.bias"),
            ("3.weight", "3.bias"),
        ]


def test_micro_batches_and_weights(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        for ids in ([0, 1, 2], [3]):
            backward(model, ids, 0.5)
            optimizer.observe(ids)
        optimizer.step()
        backward(model, [4, 5])
        optimizer.observe([4, 5], weights=torch.tensor([0.25, 0.75]))
        optimizer.step()
    with open_log(path) as log:
        first, second = log.steps()
        assert [b.ids for b in first.micro_batches] == [(0, 1, 2), (3,)]
        assert [b.coefficients.tolist() for b in first.micro_batches] == [[1 / 6] * 3, [0.5]]
        assert second.micro_batches[0].coefficients.tolist() == [0.25, 0.75]
        assert log.batch_ids(0) == [0, 1, 2, 3]


def test_sum_reduction(path):
    model = build()
    with TracingSGD(sgd(model), model, path, reduction="sum") as optimizer:
        backward(model, [0, 1])
        optimizer.step(batch_ids=[0, 1])
    assert open_log(path).step(0).micro_batches[0].coefficients.tolist() == [1.0, 1.0]


def test_buffers(path):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    expected = []
    with TracingSGD(sgd(model), model, path) as optimizer:
        for t in range(3):
            expected.append({n: b.clone() for n, b in model.named_buffers()})
            optimizer.zero_grad()
            backward(model, [t, t + 1])
            optimizer.step(batch_ids=[t, t + 1])
    expected.append(dict(model.named_buffers()))
    with open_log(path) as log:
        for t, buffers in enumerate(expected):
            assert all(torch.equal(log.buffers(t)[n], b) for n, b in buffers.items())


def test_clip_factor(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0])
        norm = optimizer.clip_grad_norm_(0.01)
        optimizer.step(batch_ids=[0])
        optimizer.zero_grad()
        backward(model, [0])
        optimizer.step(batch_ids=[0])
    with open_log(path) as log:
        assert log.step(0).clip_factor == pytest.approx(0.01 / (float(norm) + 1e-6))
        assert log.step(0).gradient_norm == pytest.approx(0.01, rel=1e-3)
        assert log.step(1).clip_factor == 1


def test_optimizer_state_is_logged_before_and_after(path):
    model = build()
    inner = torch.optim.Adam(model.parameters())
    backward(model, [0])
    inner.step()
    with TracingOptimizer(inner, model, path) as optimizer:
        backward(model, [1])
        optimizer.step(batch_ids=[1])
        assert optimizer.position == (1, None)
    with open_log(path) as log:
        assert log.states() == [0, 1]
        assert log.state(0)["optimizer"]["state"][0]["step"] == 1
        final = log.state(1)["optimizer"]
        for k, parameter in enumerate(model.parameters()):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(final["state"][k][key], inner.state[parameter][key])
        assert final["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "two dtypes"])
def test_norms_of_groups(tmp_path, mixed):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    if mixed:
        model[0].weight.data = model[0].weight.data.double()
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters()}]
    sgd = torch.optim.SGD(groups, lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        for k, p in enumerate(model.parameters()):
            p.grad = None if k == 3 else torch.full_like(p, k + 1)
        optimizer.step(batch_ids=[1])
    with open_log(tmp_path / "run.h5") as log:
        step = log.step(0)
    norms = [group.gradient_norm for group in step.groups]
    assert norms == pytest.approx([(12 + 3 * 4) ** 0.5, (6 * 9) ** 0.5])
    assert step.gradient_norm == pytest.approx((12 + 12 + 54) ** 0.5)
    assert step.groups[0].norms == pytest.approx([12**0.5, 12**0.5])
    assert step.groups[1].norms == pytest.approx([54**0.5, float("nan")], nan_ok=True)
