"""What a user may do to model and optimizer: it is logged as it is, or is a clear error."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from tracer import TracingOptimizer, open_log
from tracer.errors import TracingError, TracingWarning


class Optimizer(torch.optim.SGD):
    """SGD with further hyperparameters that it does not use."""

    def __init__(self, parameters, **more):
        super().__init__(parameters, lr=0.1)
        self.defaults.update(more)
        for group in self.param_groups:
            group.update(more)


def build():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def step(optimizer, model, ids=(0, 1, 2, 3)):
    optimizer.zero_grad()
    model(torch.ones(4, 3, dtype=next(model.parameters()).dtype)).square().mean().backward()
    optimizer.step(batch_ids=list(ids))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


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
        with pytest.raises(TracingError, match=r"'a\.1' of group 0 is a number now and was none"):
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


def test_parameter_without_elements(path):
    model = build()
    model.empty = nn.Parameter(torch.empty(0, 3))
    with TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as optimizer:
        step(optimizer, model)
    with open_log(path) as log:
        assert log.parameters(1)["empty"].shape == (0, 3)
        assert torch.equal(log.parameters(1)["weight"], model.weight)


def test_no_parameter_has_elements(path):
    model = nn.Linear(3, 1, bias=False)
    model.weight = nn.Parameter(torch.empty(0, 3))
    for steps in (2, 4):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        with TracingOptimizer(sgd, model, path, resume=steps == 4) as optimizer:
            for _ in range(2):
                optimizer.zero_grad()
                model(torch.ones(2, 3)).sum().backward()
                optimizer.step(batch_ids=[0, 1])
        with open_log(path) as log:
            assert len(log) == steps
            assert log.parameters(steps)["weight"].shape == (0, 3)


class Buffers(nn.Module):
    """A layer and two buffers, which may be one."""

    def __init__(self, *, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.a, self.b = nn.Linear(3, 2), nn.Module(), nn.Module()
        self.a.register_buffer("t", torch.zeros(3))
        self.b.register_buffer("t", self.a.t if tied else torch.zeros(3))

    def forward(self, x):
        return self.layer(x)


def traced(model, path):
    return TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path)


def reshape(model):
    model.a.t, model.b.t = torch.ones(5), torch.full((1,), 7.0)


def retype(model):
    model.a.t = torch.tensor([1, 2, 3], dtype=torch.int32)


def lengthen(model):
    model.a.t = torch.zeros(7)


def set_none(model):
    model.a.t = None


def delete(model):
    del model.a.t


def make_sparse(model):
    model.a.t = torch.ones(3).to_sparse()


def register(model):
    model.register_buffer("new", torch.ones(2))


def replace_module(model):
    model.b = nn.BatchNorm1d(2)


def to_double(model):
    model.double()


def resize(model):
    model.zero_grad()
    model.layer.weight.data, model.layer.bias.data = torch.ones(4, 3), torch.ones(4)


def new_layer(model):
    model.second = nn.Linear(2, 2)


def new_weight(model):
    model.layer.weight = nn.Parameter(model.layer.weight.detach().clone())


WAS = "and was float32 (3,) when the wrapper was made: a log's rows have one layout. Make, register"
CHANGES = {
    reshape: f"the model's buffer 'a.t' is float32 (5,) {WAS}",
    retype: f"the model's buffer 'a.t' is int32 (3,) {WAS}",
    lengthen: f"the model's buffer 'a.t' is float32 (7,) {WAS}",
    set_none: f"the model's buffer 'a.t' is missing {WAS}",
    delete: f"the model's buffer 'a.t' is missing {WAS}",
    make_sparse: f"the model's buffer 'a.t' is sparse float32 (3,) {WAS}",
    register: "the model's buffer 'new' is float32 (2,) and was missing when",
    replace_module: "the model's buffer 'b.t' is missing and was float32 (3,)",
    to_double: "the model's parameter 'layer.weight' is float64 (2, 3) and was float32 (2, 3)",
    resize: "the model's parameter 'layer.weight' is float32 (4, 3) and was float32 (2, 3)",
    new_layer: "the model's parameter 'second.weight' is float32 (2, 2) and was missing when",
    new_weight: "the model's parameter 'layer.weight' is another tensor, float32 (2, 3), and was",
}


@pytest.mark.parametrize("how", ["step", "closure", "close", "flush"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_changes_is_an_error_before_the_update(path, change, how):
    """Its rows would be misread; what was logged before stays readable."""
    model, message = Buffers(), re.escape(CHANGES[change])
    optimizer = traced(model, path)
    step(optimizer, model)
    step(optimizer, model)
    optimizer.flush()
    change(model)
    before = [p.clone() for p in model.parameters()]
    if how == "step":
        with pytest.raises(TracingError, match=message):
            step(optimizer, model)
    elif how == "closure":
        with pytest.raises(TracingError, match=message):
            optimizer.step(lambda: model(torch.ones(1, 3)).sum(), batch_ids=[1])
    elif how == "flush":
        with pytest.raises(TracingError, match=message):
            optimizer.flush()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.warns(TracingWarning, match=message):
        optimizer.close()
    with open_log(path) as log:
        assert len(log) == 2
        assert log.buffers(2)["a.t"].tolist() == [0, 0, 0]
        assert log.parameters(2)["layer.weight"].dtype == torch.float32


def test_what_may_change(path):
    """Buffers get new values, in place or not; modules without tensors come and go."""
    model = Buffers()
    with traced(model, path) as optimizer:
        for t in range(4):
            model.a.t = model.a.t + 1
            model.b.t.mul_(2).add_(1)
            model.extra = nn.Sequential(nn.Tanh()) if t % 2 else None
            if t == 2:
                model.b = copy.deepcopy(model.b)
            model.c = model.b if t == 3 else None  # a second name
            step(optimizer, model)
    with open_log(path) as log:
        assert [log.buffers(t)["a.t"][0].item() for t in range(5)] == [1, 2, 3, 4, 4]
        assert [log.buffers(t)["b.t"][0].item() for t in range(5)] == [1, 3, 7, 15, 15]


def test_one_buffer_under_two_names(path):
    model = Buffers(tied=True)
    with traced(model, path) as optimizer:
        for _ in range(3):
            step(optimizer, model)
            model.b.t.add_(1)
    with open_log(path) as log:
        assert len(log) == 3
        assert [log.buffers(t)["a.t"][0].item() for t in range(4)] == [0, 1, 2, 3]
        assert list(log.buffers(0)) == ["a.t"]


def test_sparse_buffers_are_refused(path):
    model = Buffers()
    make_sparse(model)
    with pytest.raises(TracingError, match=r"buffer 'a.t' is sparse float32 \(3,\); a log stores"):
        traced(model, path)
    assert not path.exists()
    with pytest.raises(TracingError, match="parameter 'weight' has no shape yet; run a batch"):
        traced(nn.LazyLinear(2), path)


def test_a_layer_added_later_is_refused(path):
    model = nn.Sequential(nn.Linear(3, 2))
    with traced(model, path) as optimizer:
        step(optimizer, model)
        layer = nn.Linear(2, 2)
        model.append(layer)
        for group in (layer.weight, [layer.weight], [("1.weight", layer.weight)]):
            with pytest.raises(TracingError, match="had not when the wrapper was made"):
                optimizer.add_param_group({"params": group})
        del model[1]
        step(optimizer, model)
        optimizer.optimizer.add_param_group({"params": layer.weight})  # past the wrapper
        with pytest.raises(TracingError, match=r"group 1 .* shape \(2, 2\) that is not in the"):
            step(optimizer, model)
    assert len(open_log(path)) == 2


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
            with pytest.raises(TracingError, match=r"copied nor pickled; copy or save its state_d"):
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
