"""Reading a log while training writes it: from elsewhere, from the same process, following."""

from __future__ import annotations

import os
import time

import pytest
import torch

from replay import Replay
from replay.command.show.follow import follow
from tests.helpers.cases import CASES
from tests.helpers.training import Run
from tracer import open_log
from tracer.errors import LogWarning
from tracer.thread import writer_thread


@pytest.mark.parametrize("every", [1, 3])
def test_in_the_same_process(tmp_path, every):
    path = tmp_path / "run.h5"
    run = Run(path, snapshot_every=every).train(3)
    run.optimizer.flush()
    with open_log(path) as log:
        assert (len(log), log.live) == (3, True)
        before = log.parameters(3)
        run.train(9)
        run.optimizer.flush()
        assert len(log) == 3  # what a replay of it began with
        assert log.refresh() == 9
        assert log.step(8).epoch == 1
        assert all(torch.equal(p, before[n]) for n, p in log.parameters(3).items())
    run.train(12).close()
    with open_log(path) as log:
        assert (len(log), log.live, log.metadata["closed"]) == (12, False, True)


@pytest.mark.parametrize("every", [1, 3])
def test_a_step_is_on_file_soon_without_flush(tmp_path, every):
    path = tmp_path / "run.h5"
    run = Run(path, snapshot_every=every).train(1)
    run.optimizer.flush()
    with open_log(path) as log:
        run.train(5)  # the fifth is final when the sixth begins
        until = time.monotonic() + 2
        while log.refresh() < 4 and time.monotonic() < until:
            time.sleep(0.02)
        assert log.refresh() == 4
    run.close()


def test_writer_closes_while_a_reader_of_the_same_process_looks_on(tmp_path):
    path = tmp_path / "run.h5"
    run = Run(path).train(3)
    run.optimizer.flush()
    with open_log(path) as log:
        run.train(5).close()
        assert log.refresh() == 5
        assert len(list(log.steps())) == 5
    with open_log(path) as log:
        assert log.metadata["closed"]
    Run(path, resume=True).train(6).close()


@pytest.mark.parametrize("every", [1, 4])
def test_replay_while_training(tmp_path, every):
    case = next(case for case in CASES if case.name == "mlp")
    path, whole = tmp_path / "run.h5", tmp_path / "whole.h5"
    task = case.trace(whole)
    expected = Replay(whole, task=task).influence([0, 1], methods=("tracin",), progress=False)

    seen = []

    def look(optimizer):
        optimizer.flush()
        replay = Replay(path, task=task)
        found = replay.influence([0, 1], methods=("tracin",), progress=False)
        seen.append((len(replay.log), found.terms["tracin"]["data"]))
        replay.log.close()

    case.trace(path, after_step=look, snapshot_every=every)
    assert len(seen) > 1
    for steps, data in seen:
        assert (data == expected.terms["tracin"]["data"][:steps]).all()


@pytest.mark.parametrize("every", [1, 50])
def test_from_another_process(tmp_path, monkeypatch, every):
    monkeypatch.setattr(writer_thread, "_BURST", 0.03)  # there, too
    path = tmp_path / "run.h5"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run = Run(path, snapshot_every=every).train(1)
        run.optimizer.flush()
        os.write(write, b"1")
        until = time.monotonic() + 1
        while time.monotonic() < until:
            run.step()
        run.close()
        os._exit(0)
    assert os.read(read, 1)
    seen = []
    said = rf"written by process {child} on .*: it has \d+ steps so far. The last one taken"
    with pytest.warns(LogWarning, match=said), open_log(path) as log:
        while log.is_being_written():
            steps = log.refresh()
            seen.append(steps)
            assert log.step(steps - 1).index == steps - 1
            log.parameters(steps if every == 1 else log.states()[-1])
    os.waitpid(child, 0)
    assert len(set(seen)) > 5
    assert seen == sorted(seen)


def test_follow(tmp_path):
    path = tmp_path / "run.h5"
    run = Run(path).train(8)
    run.optimizer.flush()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 1:
            run.train(10)
            run.optimizer.flush()
        else:
            run.train(11).close()

    lines = list(follow(path, wait=wait))
    assert waits == [1.0, 1.0]
    assert lines[0].startswith("step 7  epoch 1  lr 0.00125  gradient norm ")
    assert lines[1].startswith("step 9  epoch 1  ")
    assert " steps/s  lr " in lines[1]
    assert lines[2].startswith("step 10  epoch 1  ")
    assert lines[3] == f"{path}: closed, 11 steps"


def test_follow_a_writer_that_is_killed(tmp_path):
    path = tmp_path / "run.h5"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run = Run(path).train(3)
        run.optimizer.flush()
        os.write(write, b"1")
        time.sleep(60)
    assert os.read(read, 1)

    def wait(_):
        os.kill(child, 9)
        os.waitpid(child, 0)

    with pytest.warns(LogWarning, match="it has 3 steps so far"):
        lines = list(follow(path, wait=wait))
    assert lines[-1] == f"{path}: its writer ended without closing it, 3 steps"


def test_follow_a_closed_log(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(3).close()
    lines = list(follow(path, wait=pytest.fail))
    assert len(lines) == 2
    assert lines[1] == f"{path}: closed, 3 steps"


@pytest.mark.parametrize(
    "how",
    [{"compression": "none"}, {"compression": "delta"}, {"snapshot_every": 3}],
    ids=["none", "delta", "sparse"],
)
def test_a_reader_sees_a_last_row_that_was_replaced(tmp_path, how):
    run = Run(tmp_path / "run.h5", **how).train(3)
    run.optimizer.flush()
    with open_log(tmp_path / "run.h5") as log:
        log.parameters(3)
        with torch.no_grad():
            run.model[0].weight.zero_()
        run.optimizer.flush()
        assert log.refresh() == 3
        assert not log.parameters(3)["0.weight"].any()
    run.close()
