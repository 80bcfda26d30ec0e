"""What the wrapper refuses when it is made."""

from __future__ import annotations

import os

import h5py
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
        ({"record": "tensors"}, 'record must be "ids", "seeds" or "batches", found'),
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
    model = build()
    for overwrite in (False, True):
        path.touch()  # as tempfile does
        if not overwrite:
            with pytest.raises(OutputExistsError, match="exists; choose .*, pass overwrite=True"):
                TracingSGD(sgd(model), model, path)
            continue
        for _ in range(2):  # an empty file, then a log
            with TracingSGD(sgd(model), model, path, overwrite=True) as optimizer:
                backward(model, [0])
                optimizer.step(batch_ids=[0])
    with open_log(path) as log:
        assert len(log) == 1


def hdf5(path):
    """Make somebody's data set."""
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2, 3]


@pytest.mark.parametrize("make", [lambda p: p.write_text("precious"), hdf5], ids=["text", "HDF5"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_log_replaces_logs_only(path, make, overwrite):
    make(path)
    kept, model = path.read_bytes(), build()
    with pytest.raises(OutputExistsError, match=r"no run log; a log replaces logs only.\n1"):
        TracingSGD(sgd(model), model, path, overwrite=overwrite)
    assert path.read_bytes() == kept


def test_a_damaged_log_can_be_replaced(path):
    with TracingSGD(sgd(model := build()), model, path) as optimizer:
        backward(model, [0])
        optimizer.step(batch_ids=[0])
    path.write_bytes(path.read_bytes()[:2000])
    with TracingSGD(sgd(model), model, path, overwrite=True) as optimizer:
        optimizer.step(batch_ids=[0])


PLACES = {
    "folder": (lambda p: p.mkdir(), "and .*run.h5 is a folder; give a file in it: .*run.h5.run.h5"),
    "pipe": (os.mkfifo, "log must be a regular file, and .*run.h5 is none"),
    "link": (lambda p: p.symlink_to("none/x.h5"), "there is no directory .*none for the log"),
    "circle": (lambda p: p.symlink_to(p), "run.h5 (is none|cannot be written)"),
}


@pytest.mark.parametrize(("make", "message"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_places_where_no_log_can_be(path, make, message, options):
    make(path)
    model = build()
    with pytest.raises(TracingError, match=message):
        TracingSGD(sgd(model), model, path, **options)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (None, "log must be the path of a file, found NoneType"),
        (b"run.h5", "log must be the path of a file, found bytes"),
        ("a\0b.h5", "log must be the path of a file, found str: embedded null"),
        ("x" * 300, "cannot be written: File name too long.\n1. Choose another path"),
        ("", "is a folder; give a file in it"),
    ],
)
def test_what_is_no_path(log, message):
    with pytest.raises(TracingError, match=message):
        TracingSGD(sgd(model := build()), model, log)
