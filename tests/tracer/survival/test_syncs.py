"""When a log reaches the disk, and what a torn step costs then."""

from __future__ import annotations

import os

import h5py
import pytest
import torch

from tests.helpers.training import Run
from tracer import open_log
from tracer.errors import LogError, LogWarning
from tracer.log import schema
from tracer.log.write.tables import Tables


def test_sync_every(tmp_path, monkeypatch):
    calls = []
    synced = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: calls.append(number) or synced(number))
    Run(tmp_path / "run.h5", sync_every=4).train(17).close()
    assert len(calls) == 4 + 2
    calls.clear()
    run = Run(tmp_path / "run2.h5", sync_every=100).train(3)
    run.optimizer.flush()
    assert len(calls) == 1
    run.close()
    calls.clear()
    Run(tmp_path / "run3.h5").train(3).close()
    assert not calls


def test_what_replaces_a_synced_step_is_synced_first(tmp_path, monkeypatch):
    """So that a power cut leaves the old row or the new one, and a closed log all its steps."""
    run = Run(tmp_path / "run.h5", sync_every=1).train(3)
    run.optimizer.flush()
    done, put, synced = [], Tables._put, os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: done.append("sync") or synced(number))

    def noting(self, name, start, rows):
        if name in (schema.WEIGHTS, schema.META) or (name == schema.STATUS and rows["closed"]):
            done.append(name)
        put(self, name, start, rows)

    monkeypatch.setattr(Tables, "_put", noting)
    with torch.no_grad():
        run.model[0].weight.add_(1)
    run.optimizer.flush()
    assert done == [schema.WEIGHTS, "sync", schema.META, "sync", schema.WEIGHTS, "sync", "sync"]
    done.clear()
    run.close()
    assert done == ["sync", schema.STATUS, "sync"]


@pytest.mark.parametrize(("sync_every", "steps"), [(5, 8), (3, 12)])
def test_a_step_torn_before_the_last_sync_was_due(tmp_path, sync_every, steps):
    """A power cut keeps what was forced to the disk, and any of the pages written since."""
    path, torn = tmp_path / "run.h5", tmp_path / "torn.h5"
    run = Run(path, sync_every=sync_every, state_every=2).train(12)
    run.optimizer.flush()
    torn.write_bytes(path.read_bytes())
    run.close()
    with pytest.warns(LogWarning, match="superblock was repaired"), open_log(torn) as log:
        assert len(log) == 12
    with h5py.File(torn, "r+") as file:
        row = file["steps/w"][9]
        file["steps/w"][9] = 255 - row
    if steps == 12:  # damage to what had reached the disk is an error
        with open_log(torn) as log, pytest.raises(LogError, match="before step 9"):
            log.parameters(9)
        return
    with pytest.warns(LogWarning, match="4 torn steps at its end"), open_log(torn) as log:
        assert len(log) == steps
    with pytest.warns(LogWarning):
        again = Run(torn, resume=True)
    assert again.optimizer.position[0] == steps
    again.train(12).close()
    with open_log(torn) as log:
        assert len(log) == 12
        log.parameters(9)
        assert log.metadata["sync_every"] == 0
