"""What the wrapper refuses when it is made."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.wrapping import backward, build, sgd
from tracer import TracingOptimizer, TracingSGD, open_log
from tracer.errors import OutputExistsError, TracingError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "module"}, '"package.module:name"'),
        ({"reduction": "max"}, '"mean" or "sum"'),
        ({"snapshot_every": 0}, 'snapshot_every must be a number of steps, "epoch" or "auto"'),
        ({"record": "tensors"}, 'record must be "ids" or "batches", found'),
        ({"resume": True, "overwrite": True}, "overwrite=True begins anew, resume=True goes on"),
        ({"compression": "zip"}, 'compression must be "none" or "delta", found'),
        ({"state_every": 0}, "state_every must be a positive whole number, found 0"),
        ({"sync_every": -1}, "sync_every must be a positive whole number, found -1"),
        ({"steps": 1.5}, "steps must be a positive whole number, found 1.5"),
    ],
)
def test_wrong_arguments(path, options, message):
    model = build()
    with pytest.raises(TracingError, match=message):
        TracingSGD(sgd(model), model, path, **options)
    assert not path.exists()


def test_wrong_objects(path, tmp_path):
    model = build()
    with pytest.raises(TracingError, match=r"found torch.optim.Adam; TracingOptimizer wraps any"):
        TracingSGD(torch.optim.Adam(model.parameters()), model, path)
    with pytest.raises(TracingError, match=r"group 0 .* shape \(5, 4\) that is not in the model"):
        TracingSGD(sgd(model), build(), path)
    with pytest.raises(TracingError, match="expected a torch optimizer to wrap, found str"):
        TracingOptimizer("sgd", model, path)
    with pytest.raises(TracingError, match="model must be an nn.Module"):
        TracingSGD(sgd(model), model.forward, path)
    with pytest.raises(TracingError, match="there is no directory"):
        TracingSGD(sgd(model), model, tmp_path / "none" / "run.h5")


def test_existing_log(path):
    path.write_text("precious")
    model = build()
    with pytest.raises(OutputExistsError, match="exists; choose another path, pass overwrite=True"):
        TracingSGD(sgd(model), model, path)
    assert path.read_text() == "precious"
    with TracingSGD(sgd(model), model, path, overwrite=True) as optimizer:
        backward(model, [0])
        optimizer.step(batch_ids=[0])
    assert len(open_log(path)) == 1
