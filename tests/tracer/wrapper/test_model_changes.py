"""What a user may do to a model: it is logged as it is, or is a clear error."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.helpers.changing import build, step, traced
from tracer import TracingOptimizer, open_log
from tracer.errors import TracingError, TracingWarning


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
    torch.manual_seed(3)
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
def test_a_model_that_changes_ends_the_log_and_not_the_training(path, change, how):
    """Its rows would be misread; what was logged before stays readable."""
    model, twin = Buffers(), Buffers()
    optimizer, plain = traced(model, path), torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        step(optimizer, model)
        step(plain, twin)
    optimizer.flush()
    change(model)
    change(twin)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracingWarning)
        if how == "flush":
            optimizer.flush()
        if how != "close":
            for _ in range(2):
                step(optimizer, model, closure=how == "closure")
                step(plain, twin, closure=how == "closure")
        optimizer.close()
    stopped = f"tracing stopped: {CHANGES[change]}"
    assert [str(one.message).startswith(stopped) for one in caught] == [True]
    assert "is closed with 2 complete steps; training continues without" in str(caught[0].message)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    assert optimizer.position[0] == (2 if how == "close" else 4)
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
        with pytest.warns(TracingWarning, match=r"group 1 .* shape \(2, 2\) that is not in the"):
            step(optimizer, model)
    assert len(open_log(path)) == 2
