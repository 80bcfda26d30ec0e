"""What all steps have together, read column by column, beside reading them one by one."""

from __future__ import annotations

import math
import shutil

import h5py
import pytest
import torch
from torch import nn

from tracer import TracingOptimizer, open_log
from tracer.errors import LogError
from tracer.log.read import summary as room
from tracer.log.read.summary import Summary, summary

STEPS = 11


def trace(path, texts):
    """Trace steps of one or two micro-batches, some without epoch, with two groups."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters()}]
    adam = torch.optim.AdamW(groups, lr=0.25)
    with TracingOptimizer(adam, model, path, record="batches", snapshot_every=4) as optimizer:
        for t in range(STEPS):
            optimizer.epoch = None if t < 2 else t // 3
            optimizer.param_groups[1]["lr"] = 0.25 / (t + 1)
            optimizer.zero_grad()
            for k in range(1 + t % 2):
                ids = [7 * t + 10 * k + j for j in range(2 + k)]
                x = torch.ones(len(ids), 3)
                optimizer.observe([f"é{i}" for i in ids] if texts else ids, batch=x)
                model(x).sum().backward()
            optimizer.step()


@pytest.fixture(scope="module", params=[False, True], ids=["integers", "texts"])
def original(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("summary") / "run.h5"
    trace(path, request.param)
    return path


def one_by_one(log):
    """Return the different IDs, and the same as ``summary`` but for them."""
    found = Summary()
    names = set()
    for step in log.steps():
        names.update(step.batch_ids)
        found.epochs.update(() if step.epoch is None else (step.epoch,))
        found.rates.update(filter(math.isfinite, step.learning_rate))
        found.visits += len(step.batch_ids)
        found.forwards += sum(b.random_state is not None for b in step.micro_batches)
        found.recorded += sum(b.payload is not None for b in step.micro_batches)
    return names, found


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_facts(original, monkeypatch, block):
    monkeypatch.setattr(room, "_BLOCK", block)
    with open_log(original) as log:
        names, expected = one_by_one(log)
        advanced = []
        found = summary(log, lambda: advanced.append(1))
        assert len(advanced) == room.blocks(log) == math.ceil(STEPS / block)
        assert len(found.examples) == len(names)
        found.examples = set()
        assert found == expected
        assert (found.visits, found.forwards, len(found.rates)) == (37, 16, STEPS + 1)


def test_damage(original, tmp_path):
    with h5py.File(original) as file:
        texts = ["ids/bytes"] if len(file["ids/bytes"]) else []
    for table in ["steps/meta", "steps/micro", "steps/hyper", "steps/ids", *texts]:
        path = shutil.copy(original, tmp_path / "run.h5")
        with h5py.File(path, "r+") as file:
            rows = file[table][:]
            rows.view("u1").reshape(len(rows), -1)[len(rows) // 2, 0] ^= 1
            file[table][:] = rows
        with open_log(path) as log, pytest.raises(LogError, match="damaged, restore it") as found:
            summary(log)
        name = "steps/ids" if table in texts else table
        assert f"({name}) does not match" in str(found.value)


@pytest.mark.parametrize("steps", [range(1), range(3, STEPS), range(STEPS)])
def test_sizes_of_batches(original, monkeypatch, steps):
    monkeypatch.setattr(room, "_BLOCK", 4)
    with open_log(original) as log:
        those = [log.step(t) for t in steps]
        expected = [[len(one.batch_ids), len(one.micro_batches)] for one in those]
        assert room.batch_sizes(log, steps).tolist() == expected
