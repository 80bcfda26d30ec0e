"""One flipped bit anywhere: an error that names file and table, or the same log, bit for bit."""

from __future__ import annotations

import random

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.hostile import digest
from tracer import TracingOptimizer, open_log
from tracer.errors import LogError
from tracer.log import metadata, schema

EACH = 6  # flips of a table


def trace(path, steps, resume):
    """Trace steps in which every table gets rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    groups = [{"params": [model[0].weight, *model[1].parameters()]}, {"params": [model[3].weight]}]
    adam = torch.optim.Adam(groups, lr=0.01)
    options = {"record": "batches", "state_every": 2, "task": "task.py:task", "resume": resume}
    with TracingOptimizer(adam, model, path, **options) as optimizer:
        for t in steps:
            optimizer.zero_grad()
            for k in range(2):
                ids = [f"row {7 * t + 3 * k + i}" for i in range(3)]
                x = torch.randn(3, 2)
                model(x).square().mean().backward()
                optimizer.observe(ids, weights=[0.1, 0.2, 0.3] if k else None, batch=x)
            optimizer.step()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A log of two segments and four steps, and what it holds."""
    path = tmp_path_factory.mktemp("flips") / "run.h5"
    trace(path, range(2), resume=False)
    trace(path, range(2, 4), resume=True)
    return path, digest(path)


def read(path):
    """Return what a log holds, or why it cannot be read."""
    try:
        return digest(path), ""
    except LogError as error:
        return None, str(error)


@pytest.mark.parametrize("name", [*schema.TABLES, schema.STATUS, schema.PARAMETERS, schema.BUFFERS])
def test_tables(original, name):
    path, expected = original
    rng = random.Random(name)
    with h5py.File(path) as file:
        stored = file[name][()]
    assert stored.size, "a row"
    used = stored.nbytes if name != "snap/batch" else 20  # behind a batch come zeros
    for place in rng.sample(range(8 * used), EACH):
        flipped = np.frombuffer(stored.tobytes(), np.uint8).copy()
        flipped[place // 8] ^= 1 << place % 8
        with h5py.File(path, "r+") as file:
            file[name][...] = flipped.view(stored.dtype).reshape(stored.shape)
        found, error = read(path)
        assert found == expected or error, place
        if error:
            assert str(path) in error
            assert name in error or (name.startswith("ids/") and "steps/ids" in error)
    with h5py.File(path, "r+") as file:
        file[name][...] = stored
    assert digest(path) == expected


def test_attributes(original):
    path, _ = original
    with h5py.File(path) as file:
        stored = {name: file.attrs[name] for name in file.attrs}
    assert {"run_uuid", "created", "hyperparameters", metadata.CHECKSUM} < set(stored)
    for name, value in stored.items():
        data = np.frombuffer(np.asarray(value).tobytes(), np.uint8).copy()
        data[0] ^= 1
        with h5py.File(path, "r+") as file:
            file.attrs.modify(name, data.view(np.asarray(value).dtype)[0])
        with pytest.raises(LogError, match=r"run\.h5.*(attributes do|format|not a run log)"):
            open_log(path)
        with h5py.File(path, "r+") as file:
            file.attrs.modify(name, value)
    open_log(path).close()


def test_a_full_state_is_not_lost_without_a_word(original):
    """Its step is one of the numbers that a bit may change."""
    path, _ = original
    with h5py.File(path, "r+") as file:
        rows = file["snap/states"][:]
        wrong = rows.copy()
        wrong["step"][1] ^= 1 << 20
        file["snap/states"][:] = wrong
    try:
        with open_log(path) as log, pytest.raises(LogError, match="snap/states does not match"):
            log.states()
    finally:
        with h5py.File(path, "r+") as file:
            file["snap/states"][:] = rows


@pytest.mark.filterwarnings("ignore:.*is closed without a step")
def test_the_parameters_of_a_log_without_steps(tmp_path):
    path = tmp_path / "run.h5"
    trace(path, range(0), resume=False)
    with open_log(path) as log:
        assert log.parameters(0)["0.weight"].shape == (2, 2)
    with h5py.File(path, "r+") as file:
        file["steps/w"][0, 3] ^= 1
    with open_log(path) as log, pytest.raises(LogError, match="before step 0"):
        log.parameters(0)


def test_logs_from_before_the_first_release(original):
    path, _ = original
    with h5py.File(path, "r+") as file:
        del file.attrs[metadata.CHECKSUM]
    try:
        with pytest.raises(LogError, match="before the first release.*trace the run again"):
            open_log(path)
    finally:
        with h5py.File(path, "r+") as file:
            metadata.seal(file)
