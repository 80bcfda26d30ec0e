"""Whatever an optimizer keeps: training goes on, the log is whole; resuming needs dense tensors."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from tests.helpers.changing import build, step
from tests.helpers.wrappers import Halves
from tracer import TracingOptimizer, open_log
from tracer.errors import TracingError, TracingWarning


class Keeping(torch.optim.SGD):
    """SGD that keeps something for each parameter."""

    def __init__(self, parameters, kept):
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self._kept = kept

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["kept"] = self._kept(state["momentum_buffer"])


def itself(_):
    found = {}
    found["again"] = found
    return found


KEPT = {
    "wrapper": (Halves, "['kept'] is a Halves of torch.float32; a log stores dense tensors"),
    "sparse": (torch.Tensor.to_sparse, "is a sparse tensor of torch.float32"),
    "nested": (lambda b: torch.nested.nested_tensor([b[0], b[0]]), "is a nested tensor of"),
    "quantized": (lambda b: torch.quantize_per_tensor(b, 0.1, 0, torch.qint8), "is a quantized te"),
    "meta": (lambda b: b.to("meta"), "is a meta tensor of torch.float32"),
    "function": (lambda b: itself, "is a function;"),
    "generator": (lambda b: (k for k in "ab"), "is a generator;"),
    "object": (lambda b: nn.Linear(1, 1), "is a Linear;"),
    "huge": (lambda b: 10**5000, "is a whole number of 16610 bits;"),
    "itself": (itself, "the state cannot be stored: RecursionError"),
}


@pytest.mark.filterwarnings("ignore:.*(prototype|deprecat|quantiz).*")
@pytest.mark.parametrize("what", KEPT)
def test_a_state_that_cannot_be_stored(path, what):
    kept, message = KEPT[what]
    models = build(), build()
    plain = Keeping(models[0].parameters(), kept)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracingWarning)
        inner = Keeping(models[1].parameters(), kept)
        with TracingOptimizer(inner, models[1], path, state_every=2) as optimizer:
            for _ in range(5):
                step(plain, models[0])
                step(optimizer, models[1])
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    (said,) = [str(one.message) for one in caught if one.category is TracingWarning]
    assert said.startswith("this run can be replayed, but cannot be resumed: the state")
    assert message in said
    with open_log(path) as log:
        assert len(log) == 5
        assert log.states() == [0]
        assert math.isfinite(log.step(4).gradient_norm)


@pytest.mark.filterwarnings("ignore:.*(prototype|deprecat|quantiz).*")
@pytest.mark.parametrize("what", ["wrapper", "nested", "quantized", "meta"])
def test_a_model_of_such_tensors_is_refused_at_once(path, what):
    model = build()
    model.register_buffer("other", KEPT[what][0](torch.ones(2, 3)))
    name = "Halves" if what == "wrapper" else what
    with pytest.raises(TracingError, match=f"model's buffer 'other' is {name} .*; a log stores de"):
        TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path)
    assert not path.exists()
