"""What other libraries make of an optimizer: whose class it is, and what to wrap instead."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tracer import TracingOptimizer, TracingSGD
from tracer.errors import TracingError

FOREIGN = [  # what these classes look like: name, base, remedy
    (
        "accelerate.optimizer.AcceleratedOptimizer",
        torch.optim.Optimizer,
        "accelerator.prepare",
    ),
    ("lightning.pytorch.core.optimizer.LightningOptimizer", object, "from configure_optimizers"),
    ("lightning.fabric.wrappers._FabricOptimizer", object, "before fabric.setup"),
    ("fastai.optimizer.OptimWrapper", object, "OptimWrapper(opt=TracingOptimizer("),
    ("fastai.optimizer.Optimizer", object, "OptimWrapper(opt=TracingOptimizer("),
    ("schedulefree.wrap_schedulefree.ScheduleFreeWrapper", object, "AdamWScheduleFree"),
    (
        "torch.distributed.optim.zero_redundancy_optimizer.ZeroRedundancyOptimizer",
        torch.optim.Optimizer,
        "every rank then has all of its state",
    ),
]


def around(name, base, inner):
    """Return an object of a class of that name, derived once more, around an optimizer."""
    module, _, own = name.rpartition(".")
    kind = type(own, (base,), {"__module__": module, "__init__": lambda self: None})
    value = type("Derived", (kind,), {})()
    value.held = inner
    return value


@pytest.mark.parametrize(("name", "base", "remedy"), FOREIGN, ids=[row[0] for row in FOREIGN])
@pytest.mark.parametrize("kind", [TracingOptimizer, TracingSGD])
def test_it_says_whose_class_it_is_and_what_to_wrap(path, kind, name, base, remedy):
    model = nn.Linear(2, 1)
    found = around(name, base, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TracingError) as caught:
        kind(found, model, path)
    first, second = str(caught.value).split("\n")
    assert first == f"expected a torch optimizer to wrap, found {name}."
    assert second.startswith("1. ")
    assert remedy in second
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:.*is closed without a step")
def test_others(path):
    model = nn.Linear(2, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    unknown = around("theirs.Scaled", object, inner)
    with pytest.raises(TracingError, match=r"Derived.\n1. Wrap what it holds as .held, a S"):
        TracingOptimizer(unknown, model, path)
    with pytest.raises(TracingError, match=r"to wrap, found NoneType\.$"):
        TracingOptimizer(None, model, path)
    with (
        TracingOptimizer(inner, model, path) as optimizer,
        pytest.raises(TracingError, match=re.escape("found one that is traced already.")),
    ):
        TracingOptimizer(optimizer, model, path)
