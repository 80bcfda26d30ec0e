"""A job that was killed goes on where it was, and ends in the same file."""

import os
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import xarray

from replay import Counterfactual, Replay, Task
from replay.counterfactual import stacks
from replay.counterfactual.runs import Runs
from replay.session.started import Started
from replay.session.workers import Work
from tests.helpers.alternatives import Loop, losses
from tests.helpers.sparse import cnn
from tracer.errors import InputError, OutputExistsError

LOOP = Loop("cnn", "heavy-ball")
ASKED = {"train_ids": [3, 1, 20, 7], "along": 2, "progress": False}


def build():
    """Return the model, by a function that other processes find."""
    return cnn().double()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a log and the result of an uninterrupted job."""
    folder = tmp_path_factory.mktemp("job")
    LOOP.train(folder / "run.h5")
    Replay(folder / "run.h5", LOOP.task()).leave_one_out([0, 2], out=folder / "whole.h5", **ASKED)
    return folder


@pytest.fixture
def replay(folder):
    """Return a replay of the log."""
    return Replay(folder / "run.h5", LOOP.task())


def interrupted(monkeypatch, replay, out, after):
    """Run a job that is interrupted after some runs; return how many it took."""
    taken, values = [], Runs.values

    def some(runs, change):
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(change)
        return values(runs, change)

    with monkeypatch.context() as patch:
        patch.setattr(Runs, "values", some)
        try:
            replay.leave_one_out([0, 2], out=out, **ASKED)
        except KeyboardInterrupt:
            assert not out.exists()
    return len(taken)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("torn", [0, 20])
def test_it_goes_on_and_ends_in_the_same_file(tmp_path, monkeypatch, folder, replay, after, torn):
    out, parts = tmp_path / "study.h5", tmp_path / "study.h5.parts"
    interrupted(monkeypatch, replay, out, after)
    (file,) = parts.iterdir()
    file.write_bytes(file.read_bytes()[: -torn or None])
    kept = max(0, after - bool(torn))
    assert interrupted(monkeypatch, replay, out, 1) == 1
    assert interrupted(monkeypatch, replay, out, 99) == 4 - kept - 1
    assert not parts.exists()
    assert out.read_bytes() == (folder / "whole.h5").read_bytes()


def test_stacks_go_on_and_end_in_the_same_file(tmp_path, monkeypatch, folder, replay):
    monkeypatch.setattr(stacks, "FEWEST", 2)
    monkeypatch.setattr(stacks, "MOST", 2)
    out, together, count = tmp_path / "study.h5", stacks._together, []

    def some(runs, changes):
        count.append(len(changes))
        if len(count) == 2:
            raise KeyboardInterrupt
        return together(runs, changes)

    monkeypatch.setattr(stacks, "_together", some)
    with pytest.raises(KeyboardInterrupt):
        replay.leave_one_out([0, 2], out=out, **ASKED)
    replay.leave_one_out([0, 2], out=out, **ASKED)
    assert count == [2, 2, 2]
    assert out.read_bytes() == (folder / "whole.h5").read_bytes()


def test_only_the_same_question_goes_on(tmp_path, monkeypatch, folder, replay):
    out, parts = tmp_path / "study.h5", tmp_path / "study.h5.parts"
    interrupted(monkeypatch, replay, out, 2)
    for test_ids, more, what in (
        ([0], {}, "test examples"),
        ([0, 2], {"train_ids": [3, 1]}, "choice of runs"),
        ([0, 2], {"renormalise": True}, "choice of runs"),
        ([0, 2], {"along": 3}, "choice of states"),
    ):
        with pytest.raises(InputError, match=f"another question: its {what} .*\n1. To go on"):
            replay.leave_one_out(test_ids, out=out, **{**ASKED, **more})
    (parts / "notes.txt").write_text("my notes\n")
    with pytest.raises(InputError, match=r"something else than finished parts.\n1. Move it away"):
        replay.leave_one_out([0, 2], out=out, **ASKED)
    assert (parts / "notes.txt").read_text() == "my notes\n"


def test_a_result_is_not_replaced_unasked(tmp_path, folder, replay):
    out = shutil.copy(folder / "whole.h5", tmp_path)
    with pytest.raises(OutputExistsError):
        replay.leave_one_out([0, 2], out=out, **ASKED)
    replay.leave_one_out([0, 2], out=out, overwrite=True, **ASKED)
    with pytest.raises(InputError, match="would replace"):
        replay.leave_one_out([0, 2], out=folder / "run.h5", overwrite=True, **ASKED)


def test_a_file_holds_what_was_found(folder, replay):
    found, loaded = replay.leave_one_out([0, 2], **ASKED), Counterfactual.load(folder / "whole.h5")
    assert loaded.changes == found.changes == [{i: 0.0} for i in ASKED["train_ids"]]
    assert loaded.attributes == found.attributes
    assert loaded.protocol == "leave-one-out of 4 runs, denominators of the run"
    assert (loaded.steps, loaded.test_ids) == (found.steps, found.test_ids) == ([2, 4, 6], [0, 2])
    for name in ("values_along", "baseline_along", "change"):
        assert np.array_equal(getattr(loaded, name), getattr(found, name))
    assert "4 runs, 2 test examples" in repr(found)
    with xarray.open_dataset(folder / "whole.h5", engine="h5netcdf") as data:
        assert dict(data.sizes) == {"run": 4, "step": 3, "test": 2, "change": 4}
        assert data["step"].values.tolist() == [2, 4, 6]
        assert data["change"].values.tolist() == ASKED["train_ids"]
        tables = [v.values for v in data.values() if v.dims == ("run", "step", "test")]
    assert any(np.array_equal(table, found.values_along) for table in tables)


BESIDE = """
from tests.helpers.alternatives import Loop
task = Loop("cnn", "heavy-ball").task()
"""


def test_two_workers_end_in_the_same_file(tmp_path, folder, monkeypatch):
    """Also where a file beside the task is named like a library."""
    (tmp_path / "work.py").write_text(BESIDE)
    for name in ("torch", "numbers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not the library')")
    monkeypatch.setattr(sys, "path", sys.path[:])
    run, out = Replay(folder / "run.h5", f"{tmp_path / 'work.py'}:task"), tmp_path / "two.h5"
    assert sys.path[0] == str(tmp_path)
    run.leave_one_out([0, 2], out=out, workers=2, **ASKED)
    assert out.read_bytes() == (folder / "whole.h5").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(
    ("job", "with_", "said"),
    [
        (os._exit, 3, "exit code 3 before it could work; .*\n1. Put what starts workers under"),
        (signal.raise_signal, signal.SIGKILL, "ended by SIGKILL.\n1. .* short of memory: take few"),
        (signal.raise_signal, signal.SIGTERM, "ended from outside.\n1. "),
    ],
    ids=["import", "killed", "stopped"],
)
def test_how_a_worker_ended_is_said(job, with_, said):
    started = Started()
    pool = ProcessPoolExecutor(1, started, initializer=job, initargs=(with_,))
    with pytest.raises(BrokenProcessPool):
        pool.submit(abs, 1).result()
    pool.shutdown()
    with pytest.raises(InputError, match=said):
        raise started.ended()


def test_workers_are_stopped_at_once():
    started, began = Started(), time.monotonic()
    pool = ProcessPoolExecutor(1, started, initializer=time.sleep, initargs=(60,))
    future = pool.submit(abs, 1)
    started.stop()
    pool.shutdown()
    assert isinstance(future.exception(), BrokenProcessPool)
    assert time.monotonic() - began < 30


def test_a_task_that_a_worker_cannot_find_is_said(folder, monkeypatch):
    run = Replay(folder / "run.h5", Task(build, losses, train=[], test=[]))
    work = Work(run.log.path, run.task, {}, 1, *[None] * 2).packed()
    assert Work.unpacked(work).task.model is build
    monkeypatch.delattr(f"{__name__}.build")
    with pytest.raises(InputError, match=r"cannot find the task.*build.*\n1. Name it"):
        Work.unpacked(work)


def test_a_task_that_cannot_be_sent_is_said(folder, replay):
    with pytest.raises(InputError, match=r"task in other processes.*\n1. Name it.*\n2. Or use one"):
        replay.leave_one_out([0, 2], workers=2, **ASKED)
