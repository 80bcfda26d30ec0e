"""Ctrl-C at the worst moments: the log's last step is right, and the run can go on."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from tests.helpers.training import Run
from tracer import open_log
from tracer.errors import LogError, TracingWarning
from tracer.log.write.writer import LogWriter
from tracer.thread.log_channel import LogChannel
from tracer.thread.ring import Slot
from tracer.watch.state_capture import RunState
from tracer.wrapper.last_step import LastStep
from tracer.wrapper.log_file import LogFile
from tracer.wrapper.micro_batches import Observations
from tracer.wrapper.step_logger import StepLogger
from tracer.wrapper.step_look import StepLook

STEPS = 8


@pytest.fixture(scope="module")
def weights():
    """Return the parameters of an uninterrupted run before each step."""
    run, found = Run(), []
    for _ in range(STEPS + 1):
        found.append([p.detach().clone() for p in run.model.parameters()])
        if run.t < STEPS:
            run.step()
    return found


def interrupt(monkeypatch, owner, name, call):
    """Do as Ctrl-C does when a function is called for the n-th time, before it does anything."""
    real, calls = getattr(owner, name), 0

    def spy(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, spy)


def holds(path, weights):
    """Return the number of steps; every row must be the run's."""
    with open_log(path) as log:
        assert log.metadata["closed"]
        on_file = range(len(log) + 1) if log.is_dense else log.states()
        for t in on_file if len(log) else ():
            for logged, expected in zip(log.parameters(t).values(), weights[t], strict=True):
                assert torch.equal(logged, expected), t
        return len(log)


def require_free(path, weights):
    """Find every step on file and the path free for another writer."""
    assert not path.with_name("run.h5.lock").exists()
    assert holds(path, weights) == STEPS
    with contextlib.closing(Run(path, overwrite=True).train(2)):
        pass
    assert holds(path, weights) == 2


@pytest.mark.filterwarnings("ignore:.*is closed without a step")
@pytest.mark.parametrize(
    ("owner", "name", "call", "steps"),
    [
        (Observations, "announced", 7, 3),
        (Observations, "announced", 8, 3),
        (StepLogger, "keep", 4, 3),  # parameters have moved, nothing is put down
        (RunState, "capture", 2, 4),  # of step 4, which is due
        (StepLook, "begin", 4, 3),
        (LastStep, "keep", 4, 3),
        (LogChannel, "take", 4, 3),  # waiting for the writer before a step
        (LogChannel, "put", 4, 2),  # what is pending may be written already, or not
        (Slot, "fill", 4, 2),
        (LogChannel, "submit", 2, 3),
        (LogFile, "creation", 1, 0),  # in the first step
        (RunState, "capture", 1, 0),
    ],
)
@pytest.mark.parametrize("kind", ["snapshot_every", "state_every"])
def test_in_a_step(monkeypatch, tmp_path, weights, owner, name, call, steps, kind):
    path = tmp_path / "run.h5"
    interrupt(monkeypatch, owner, name, call)
    run = Run(path, **{kind: 4})
    with pytest.raises(KeyboardInterrupt):
        run.train(STEPS)
    run.close()
    monkeypatch.undo()
    if path.exists():
        assert holds(path, weights) >= steps
    again = Run(path, **{kind: 4}, resume=True)
    again.train(STEPS).close()
    assert holds(path, weights) == STEPS


def test_training_that_goes_on_after_it_is_not_logged_wrongly(monkeypatch, tmp_path, weights):
    path = tmp_path / "run.h5"
    interrupt(monkeypatch, StepLogger, "keep", 4)
    run = Run(path)
    with pytest.raises(KeyboardInterrupt):
        run.train(STEPS)
    with pytest.warns(TracingWarning, match="a step of .* was interrupted .* with 3 complete"):
        run.train(STEPS)
    run.close()
    assert holds(path, weights) == 3


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(threading.Thread, "join", 1), (LogChannel, "close", 1)],
)
def test_in_close(monkeypatch, tmp_path, weights, owner, name, call):
    path = tmp_path / "run.h5"
    run = Run(path).train(STEPS)
    run.optimizer.flush()
    interrupt(monkeypatch, owner, name, call)
    with pytest.raises(KeyboardInterrupt):
        run.close()
    monkeypatch.undo()
    run.close()
    require_free(path, weights)


def test_a_log_that_was_not_finished_has_no_name_yet(monkeypatch, tmp_path, weights):
    path = tmp_path / "run.h5"
    Run(path).train(2).close()
    monkeypatch.setattr(LogWriter, "__init__", lambda *_, **__: 1 / 0)
    run = Run(path, overwrite=True)
    with pytest.warns(TracingWarning, match="division by zero"):
        run.train(2)
        run.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5"]
    assert holds(path, weights) == 2


def test_flush_of_an_interrupted_step_leaves_the_log_alone(monkeypatch, tmp_path, weights):
    path = tmp_path / "run.h5"
    run = Run(path).train(3)
    run.optimizer.flush()
    interrupt(monkeypatch, StepLogger, "keep", 1)
    with pytest.raises(KeyboardInterrupt):
        run.step()
    monkeypatch.undo()
    run.optimizer.flush()
    with pytest.warns(TracingWarning, match="interrupted before it was put down"):
        run.step()
    run.close()
    assert holds(path, weights) == 3


def test_flush_after_close_returns(tmp_path):
    run = Run(tmp_path / "run.h5").train(2)
    run.close()
    run.optimizer.flush()


def test_close_interrupted_while_it_waits_for_the_writer(monkeypatch, tmp_path, weights):
    """The last step, which only close() puts down, is kept."""
    path = tmp_path / "run.h5"
    run = Run(path).train(STEPS)
    interrupt(monkeypatch, LogChannel, "take", 1)
    with pytest.raises(KeyboardInterrupt):
        run.close()
    monkeypatch.undo()
    assert holds(path, weights) == STEPS


def test_close_left_while_the_log_is_being_written(monkeypatch, tmp_path, weights):
    """Two Ctrl-C end the waiting; others may write the log when the thread has ended."""
    path, finish, close = tmp_path / "run.h5", threading.Event(), LogWriter.close

    def slow(writer):
        finish.wait(30)
        close(writer)

    def impatient(_):
        raise KeyboardInterrupt

    run = Run(path).train(STEPS)
    monkeypatch.setattr(LogWriter, "close", slow)
    monkeypatch.setattr(threading.Thread, "join", impatient)
    with pytest.raises(KeyboardInterrupt):
        run.close()
    monkeypatch.undo()
    with pytest.raises(LogError, match="is being written in this process already"):
        Run(path, overwrite=True)
    finish.set()
    for thread in threading.enumerate():
        if thread.name == "tracer-writer":
            thread.join(30)
    require_free(path, weights)


def test_a_wrapper_that_cannot_go_on_leaves_the_log(monkeypatch, tmp_path, weights):
    path = tmp_path / "run.h5"
    Run(path, state_every=4).train(6).close()
    interrupt(monkeypatch, Observations, "resume", 1)
    with pytest.raises(KeyboardInterrupt):
        Run(path, resume=True)
    monkeypatch.undo()
    assert not [t for t in threading.enumerate() if t.name == "tracer-writer"]
    assert holds(path, weights) == 6
    with contextlib.closing(Run(path, resume=True)) as again:
        again.train(STEPS)
    assert holds(path, weights) == STEPS
