"""How rows go from training to the file: waiting, bursts, blocks."""

from __future__ import annotations

import time

import numpy as np

from tests.helpers.training import Run, assert_equal_logs
from tracer.codec.layout import joined
from tracer.log import schema
from tracer.log.write.tables import Tables
from tracer.log.write.writer import LogWriter
from tracer.thread import ring, writer_thread


def test_training_waits_when_the_ring_is_full(tmp_path, monkeypatch):
    """A slow disk slows training down; it loses nothing and takes no more memory."""
    expected, path = tmp_path / "expected.h5", tmp_path / "run.h5"
    Run(expected).train(25).close()
    append, made = LogWriter.append, []

    def slow(self, *arguments):
        time.sleep(0.01)
        append(self, *arguments)

    monkeypatch.setattr(LogWriter, "append", slow)
    monkeypatch.setattr(ring, "_MOST", 3)
    slot = ring.Slot.__init__
    monkeypatch.setattr(
        ring.Slot, "__init__", lambda self, *a, **k: (made.append(1), slot(self, *a, **k))[1]
    )
    began = time.monotonic()
    run = Run(path).train(25)
    assert time.monotonic() - began > 0.2
    run.close()
    assert len(made) == 3
    assert_equal_logs(path, expected)


def test_a_burst_writes_its_snapshots_in_one_call(tmp_path, monkeypatch):
    expected, path, written = tmp_path / "expected.h5", tmp_path / "run.h5", []
    Run(expected).train(20).close()
    monkeypatch.setattr(writer_thread, "_BURST", 60)
    put = Tables._put

    def counting(self, name, start, rows):
        if name == schema.WEIGHTS:
            written.append((start, len(rows)))
        put(self, name, start, rows)

    monkeypatch.setattr(Tables, "_put", counting)
    run = Run(path).train(20)
    run.optimizer.flush()
    assert written == [(0, 1), (1, 20)]
    run.close()
    assert_equal_logs(path, expected)


def test_rows_that_follow_each_other_are_one_block():
    memory = np.arange(24, dtype=np.uint8).reshape(6, 4)
    rows = [memory[4], memory[5], memory[0], memory[1], memory[3], np.full(4, 7, np.uint8)]
    blocks = joined(rows)
    assert [len(block) for block in blocks] == [2, 2, 1, 1]
    assert (np.concatenate(blocks) == np.array(rows)).all()
    assert np.shares_memory(blocks[1], memory)
