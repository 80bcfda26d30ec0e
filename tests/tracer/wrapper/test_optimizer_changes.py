"""What a user may do to an optimizer: it is logged as it is, or is a clear error."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.changing import build, step, traced
from tracer import TracingOptimizer, open_log
from tracer.errors import TracingError, TracingWarning


class Optimizer(torch.optim.SGD):
    """SGD with further hyperparameters that it does not use."""

    def __init__(self, parameters, **more):
        super().__init__(parameters, lr=0.1)
        self.defaults.update(more)
        for group in self.param_groups:
            group.update(more)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"eps": (None, 1e-3)}, {"eps.0": np.nan, "eps.1": 1e-3}),
        ({"betas": ((0.9, 0.8), 0.99)}, {"betas.1": 0.99}),
        ({"names": ["a", "b"], "mode": "fast"}, {}),
        ({"sizes": (torch.ones(3), torch.tensor(2.0)), "x": torch.ones(3)}, {"sizes.1": 2.0}),
        ({"c": np.float32(0.5), "b": np.True_}, {"c": 0.5, "b": 1.0}),
    ],
    ids=["none", "nested", "text", "tensors", "scalars"],
)
def test_only_numbers_are_logged_of_the_groups(path, more, expected):
    model = build()
    with TracingOptimizer(Optimizer(model.parameters(), **more), model, path) as optimizer:
        step(optimizer, model)
    with open_log(path) as log:
        found = log.step(0).groups[0].hyperparameters
    found = {key: value for key, value in found.items() if key.split(".")[0] in more}
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_number_that_was_none_at_the_first_step(path):
    model = build()
    with TracingOptimizer(Optimizer(model.parameters(), a=(0.9,)), model, path) as optimizer:
        step(optimizer, model)
        optimizer.param_groups[0]["a"] = (0.9, 0.8)
        with pytest.warns(TracingWarning, match=r"'a\.1' of group 0 is a number now and was none"):
            step(optimizer, model)
    assert len(open_log(path)) == 1


def test_adafactor(path):
    model = build()
    inner = torch.optim.Adafactor(model.parameters())
    with TracingOptimizer(inner, model, path) as optimizer:
        step(optimizer, model)
    with open_log(path) as log:
        assert log.step(0).groups[0].hyperparameters["eps.1"] == 1e-3
        assert torch.equal(log.parameters(1)["weight"], model.weight)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array])
def test_numpy_learning_rate(path, kind):
    model = build()
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    rate = kind(0.5)
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(3):
            optimizer.param_groups[0]["lr"] = rate
            step(optimizer, model)
            if t == 1 and isinstance(rate, np.ndarray):
                rate *= 0.5  # the same object
    with open_log(path) as log:
        last = 0.25 if isinstance(rate, np.ndarray) else 0.5
        assert [log.learning_rate(t) for t in range(3)] == [(0.5,), (0.5,), (last,)]


@pytest.mark.parametrize("epoch", ["3", 1.5, -1, 2**70, [1]])
def test_an_epoch_is_a_whole_number(path, epoch):
    model = build()
    with traced(model, path) as optimizer:
        for good in (np.int64(3), torch.tensor(2), None, 2**40):
            optimizer.epoch = good
            assert optimizer.epoch == good
            step(optimizer, model)
        with pytest.raises(TracingError, match="epoch must be None or a whole number from 0 on"):
            optimizer.epoch = epoch
        assert optimizer.epoch == 2**40
    assert [s.epoch for s in open_log(path).steps()] == [3, 2, None, 2**40]


@pytest.mark.parametrize("options", [{"compression": "x"}, {"state_every": 0}, {"steps": 0}])
def test_a_constructor_that_fails_leaves_no_hooks(path, options):
    model = build()
    with pytest.raises(TracingError, match="must be"):
        TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path, **options)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("way", ["step", "observe", "observe first", "clip"])
@pytest.mark.parametrize("fused", [False, True])
def test_nothing_stays_of_a_step_that_amp_left_out(path, way, fused):
    """Not its IDs, random state, buffers or clip factor, though only the model's zero_grad ran."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    inner = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    random, means = [], []
    with TracingOptimizer(inner, model, path) as optimizer:
        for k in range(4):
            model.zero_grad()
            ids = {} if way.startswith("observe") else {"batch_ids": [k, k]}
            if way == "observe first":
                optimizer.observe([k, k])
            if k != 1:
                random.append(torch.get_rng_state())
                means.append(model[1].running_mean.clone())
            loss = model(torch.ones(2, 3) * k).square().mean() * (float("inf") if k == 1 else 1)
            scaler.scale(loss).backward()
            if way == "observe":
                optimizer.observe([k, k])
            if way == "clip" and not fused:
                scaler.unscale_(optimizer)
                optimizer.clip_grad_norm_(1e6)
            scaler.step(optimizer, **ids)
            scaler.update()
    with open_log(path) as log:
        assert [log.batch_ids(t) for t in range(len(log))] == [[0, 0], [2, 2], [3, 3]]
        for t, one in enumerate(log.steps()):
            assert torch.equal(one.micro_batches[0].random_state.cpu, random[t])
            assert torch.equal(log.buffers(t)["1.running_mean"], means[t])
            assert one.clip_factor == 1


def test_optimizer_state_that_belongs_to_no_parameter(path):
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            self.state["all"]["n"] = self.state["all"].get("n", 0) + 1
            self.state["plain"] = 3
            return super().step(closure)

    model = build()
    for resume in (False, True):
        inner = Counting(model.parameters(), lr=0.1, momentum=0.9)
        with TracingOptimizer(inner, model, path, state_every=2, resume=resume) as optimizer:
            assert optimizer.state.get("all", {}).get("n", 0) == optimizer.position[0]
            for _ in range(3):
                step(optimizer, model, "abcd")
    with open_log(path) as log:
        assert log.states() == [0, 2, 4, 6]
        state = log.state(6)["optimizer"]["state"]
        assert state["all"] == {"n": 6}
        assert state["plain"] == 3
        assert torch.equal(
            state[0]["momentum_buffer"], inner.state[model.weight]["momentum_buffer"]
        )


def test_state_that_cannot_be_kept_is_said_once(path):
    model = build()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    inner.state[7] = {"n": 1}
    optimizer = TracingOptimizer(inner, model, path, state_every=1)
    with pytest.warns(TracingWarning, match="cannot be resumed: the optimizer's state has the key"):
        step(optimizer, model)
    step(optimizer, model)
    optimizer.close()
    assert len(open_log(path)) == 2


def test_a_group_removed(path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    inner = torch.optim.Adam([{"params": layer.parameters()} for layer in model])
    with TracingOptimizer(inner, model, path) as optimizer:
        step(optimizer, model)
        del optimizer.param_groups[0]
        step(optimizer, model)
    with open_log(path) as log:
        assert [len(one.groups) for one in log.steps()] == [2, 1]
        state = log.state(2)["optimizer"]["state"]
        assert [state[k]["step"].item() for k in (0, 1)] == [2, 2]
        assert torch.equal(state[0]["exp_avg"], inner.state[model[1].weight]["exp_avg"])


def test_assigning_goes_to_the_wrapped_optimizer(path):
    model = build()
    inner = torch.optim.Adam(model.parameters())
    with TracingOptimizer(inner, model, path) as optimizer:
        step(optimizer, model)
        for name in ("state", "param_groups", "defaults"):
            value = copy.copy(getattr(inner, name))
            setattr(optimizer, name, value)
            assert getattr(inner, name) is value
        step(optimizer, model)
        for use in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TracingError, match=r"nor pickled.*\n1. Copy or save its state_d"):
                use(optimizer)
    assert len(open_log(path)) == 2


@pytest.mark.parametrize(("first", "then"), [("abcd", [1, 2]), ([1, 2], "abcd")])
def test_a_resumed_run_has_ids_of_the_same_type(path, first, then):
    model = build()
    with traced(model, path) as optimizer:
        step(optimizer, model, first)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(inner, model, path, resume=True) as optimizer:
        with pytest.raises(TracingError, match="batch IDs were .* so far and are now"):
            step(optimizer, model, then)
        step(optimizer, model, first)
    with open_log(path) as log:
        assert log.batch_ids(1) == list(first)


def test_resuming_with_parameters_in_another_order(path):
    def model(order):
        return nn.ModuleDict({name: nn.Linear(2, 2) for name in order})

    first = model("ab")
    with traced(first, path) as optimizer:
        first["a"](torch.ones(1, 2)).sum().backward()
        optimizer.step(batch_ids=[1])
    second = model("ba")
    with pytest.raises(TracingError, match="in another order than the log"):
        TracingOptimizer(torch.optim.SGD(second.parameters(), lr=0.1), second, path, resume=True)
