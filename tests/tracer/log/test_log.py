"""Reading logs: every error by its message, damage by name, nothing run or imported."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from tracer import TracingSGD, open_log
from tracer.errors import LogError


@pytest.fixture
def path(tmp_path):
    """A run of three steps whose task does not exist."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    target = tmp_path / "run.h5"
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, target, task="no_such_module:task", record="batches") as optimizer:
        for t in range(3):
            batch = torch.randn(4, 3)
            torch.rand(1)
            model(batch).square().sum().backward()
            ids = [f"image {k}" for k in (t, 1, 2, 3)]
            optimizer.observe(ids, weights=[1.0, 1.0, 1.0, 2.0], batch=batch)
            optimizer.step()
    return target


def test_missing(tmp_path):
    with pytest.raises(LogError, match="there is no log .*none.h5; check the path"):
        open_log(tmp_path / "none.h5")


def test_directory(tmp_path):
    with pytest.raises(LogError, match="is not a file; expected a run log"):
        open_log(tmp_path)


def test_not_hdf5(tmp_path):
    (tmp_path / "ids.txt").write_text("1\n2\n")
    with pytest.raises(LogError, match="ids.txt is not an HDF5 file; expected a run log"):
        open_log(tmp_path / "ids.txt")


def test_empty_file(tmp_path):
    (tmp_path / "run.h5").touch()
    with pytest.raises(LogError, match="is not an HDF5 file"):
        open_log(tmp_path / "run.h5")


def test_other_hdf5(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(LogError, match="not a run log.*Influence.load"):
        open_log(tmp_path / "other.h5")


def test_newer_format(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(LogError, match="has log format 99, this version reads up to 1; upgrade"):
        open_log(path)


def test_missing_table(path):
    with h5py.File(path, "r+") as file:
        del file["layout/parameters"]
    with pytest.raises(LogError, match=r"run\.h5 is a damaged run log"):
        open_log(path)


def test_truncated(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LogError, match=r"run\.h5"):
        open_log(path)


@pytest.mark.parametrize(
    ("table", "step", "message"),
    [
        ("steps/w", 1, r"the parameters before step 1 \(steps/w\) do not match their checksum"),
        ("steps/w", 3, r"the parameters before step 3 \(steps/w\) do not match their checksum"),
        ("steps/ids", 0, r"the record of step 0 \(steps/ids\) does not match its checksum"),
        ("steps/hyper", 1, r"the record of step 1 \(steps/hyper\) does not match its checksum"),
        ("steps/coef", 0, r"the record of step 0 \(steps/coef\) does not match its checksum"),
        ("steps/micro", 2, r"the record of step 2 \(steps/micro\) does not match its checksum"),
        ("steps/nograd", 0, r"the record of step 0 \(steps/nograd\) does not match its checksum"),
        ("steps/meta", 2, r"the record of step 2 \(steps/meta\) does not match its checksum"),
        ("groups", 1, r"the record of step 0 \(groups\) does not match its checksum"),
        ("snap/buf", 1, r"the record of step 0 \(snap/buf\) does not match its checksum"),
        ("snap/rng", 1, r"the record of step 1 \(snap/rng\) does not match its checksum"),
        ("snap/batch", 9, r"the record of step 0 \(snap/batch\) does not match its checksum"),
        ("snap/opt", 64, r"snap/opt does not match its checksum for the state before step 0"),
        ("snap/states", 1, "snap/states does not match its checksum"),
        ("ids/bytes", 0, r"the record of step 0 \(steps/ids\) does not match its checksum"),
        ("ids/ends", 0, "ids/ends is not in order"),
        ("status", 0, "status does not match its checksum"),
        ("layout/parameters", 0, "layout/parameters does not match its checksum"),
        ("layout/buffers", 0, "layout/buffers does not match its checksum"),
        ("segments", 0, "segments does not match its checksum"),
    ],
)
def test_flipped_byte(path, table, step, message):
    with h5py.File(path, "r+") as file:
        row = file[table][step : step + 1]
        raw = row.view(np.uint8)
        raw.reshape(-1)[-1 if raw.size < 100 else -9] ^= 1
        file[table][step : step + 1] = row
    with pytest.raises(LogError, match=message), open_log(path) as log:
        read_everything(log)


def read_everything(log):
    """Touch every table."""
    for t in range(len(log) + 1):
        log.parameters(t)
        log.buffers(t)
    for step in log.steps():
        for batch in step.micro_batches:
            assert batch.batch is not None
    for t in log.states():
        log.state(t)
    assert log.segments()


def test_opening_imports_no_task(path):
    with open_log(path) as log:
        assert log.metadata["task"] == "no_such_module:task"
        assert len(list(log.steps())) == 3


def test_no_pickle_and_no_variable_length_types(path):
    kinds = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                kinds.append((name, item.dtype)) if isinstance(item, h5py.Dataset) else None
            )
        )
    assert kinds
    for name, dtype in kinds:
        parts = [dtype] if dtype.fields is None else [d for d, _ in dtype.fields.values()]
        assert all(part.kind != "O" for part in parts), name
