"""Killed runs and torn files: no flushed step is lost, and what is torn is named."""

from __future__ import annotations

import os
import random
import shutil
import warnings

import h5py
import pytest
import torch

from tests.helpers.kills import DENSE, SPARSE, kill_one, reference
from tests.helpers.training import Run, script, unclosed
from tracer import open_log
from tracer.errors import LogWarning
from tracer.hdf5 import superblock
from tracer.hdf5.repair import RepairedView
from tracer.log import schema
from tracer.log.parts import full_states
from tracer.log.write.writer import LogWriter


@pytest.fixture(scope="module")
def expected():
    return reference()


HOW = {
    "sparse": SPARSE,
    "none": {**DENSE, "compression": "none"},
    "delta": {**DENSE, "compression": "delta"},
}


@pytest.mark.parametrize(
    ("how", "k"),
    [(how, k) for how, count in (("sparse", 8), ("none", 2), ("delta", 2)) for k in range(count)],
)
def test_kill(tmp_path, expected, how, k):
    found = kill_one(tmp_path / "run.h5", random.Random(k), expected, **HOW[how])
    assert found["flushed"]
    assert found["repaired"]


def test_repair_is_in_place_and_said(tmp_path):
    path = unclosed(tmp_path / "run.h5")
    with pytest.raises(OSError, match="file is already open"):
        h5py.File(path, "r")
    with (
        pytest.warns(LogWarning, match="was not closed by its writer: its superblock was repaired"),
        open_log(path) as log,
    ):
        assert len(log) == 9
        assert not log.metadata["closed"]
    assert not path.with_name("run.h5.lock").exists()
    with h5py.File(path, "r") as file:
        assert file["steps/meta"].shape == (9,)
    with open_log(path) as log:  # no second repair, no second warning
        assert len(log) == 9


def test_a_place_that_cannot_be_written_is_read_as_if_repaired(tmp_path, monkeypatch):
    path = unclosed(tmp_path / "run.h5")
    path.with_name("run.h5.lock").unlink()
    before = path.read_bytes()
    opened = os.open

    def refuse(file, flags, *rest, **named):
        if str(file).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.warns(LogWarning, match=r"read as if repaired, not changed \(Permission denied\)"),
        open_log(path) as log,
    ):
        assert len(log) == 9
        assert [step.index for step in log.steps()] == list(range(9))
    assert path.read_bytes() == before


def test_a_file_shorter_than_its_superblock_says(tmp_path):
    path = unclosed(tmp_path / "run.h5")
    os.truncate(path, path.stat().st_size - 100)
    block = superblock.read(path)
    fixed, end = superblock.repaired(block, path.stat().st_size)
    view = RepairedView(path, schema.TABLES)
    assert view.seek(0, os.SEEK_END) == end
    view.seek(0)
    assert view.read(48) == fixed
    view.seek(end - 200)
    assert len(view.read(500)) == 200
    view.close()


def test_torn_steps_are_named(tmp_path):
    path = unclosed(tmp_path / "run.h5")
    with pytest.warns(LogWarning, match="It holds 9 whole steps"), open_log(path):
        pass
    with h5py.File(path, "r+") as file:
        for row in (8, 9):
            file["steps/w"][row, 3] ^= 1
    with (
        pytest.warns(LogWarning, match="2 torn steps at its end are left out. It holds 7 whole"),
        open_log(path) as log,
    ):
        assert len(log) == 7


def test_a_last_step_whose_buffers_are_torn_is_left_out(tmp_path):
    path = unclosed(tmp_path / "run.h5")
    with pytest.warns(LogWarning, match="It holds 9 whole steps"), open_log(path):
        pass
    with h5py.File(path, "r+") as file:
        file["snap/buf"][-1, 0] ^= 1
    with pytest.warns(LogWarning, match="1 torn step.* It holds 8 whole"), open_log(path) as log:
        assert log.buffers(8)


@pytest.mark.parametrize("options", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_a_last_state_that_is_torn_is_not_there(tmp_path, options):
    """A step that changes after a flush has its state written again, in place."""
    path = unclosed(tmp_path / "run.h5", steps=40, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_log(path) as log:
            assert log.states() == [0, 20, 40]
        with h5py.File(path, "r+") as file:
            file[full_states.SNAP_STATE][-3] ^= 1
        with open_log(path) as log:
            assert (len(log), log.states()) == (40, [0, 20])
        run = Run(path, resume=True, **options)
    assert run.t == 20
    run.close()


@pytest.mark.parametrize("seed", range(5))
def test_torn_tail(tmp_path, seed):
    """Whatever the end of the file lacks, what is left is a whole run or a clear error."""
    path = unclosed(tmp_path / "run.h5", steps=30, width=60)
    torn_path = shutil.copy(path, tmp_path / "torn.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_log(path) as log:
            whole = [log.parameters(t) for t in range(31)]
    rng = random.Random(seed)
    size = torn_path.stat().st_size
    with torn_path.open("r+b") as file:
        if seed % 2:
            file.truncate(rng.randrange(size // 2, size))
        else:
            for _ in range(3):
                file.seek(rng.randrange(size // 2, size - 4096))
                file.write(bytes(4096))
    torn = """
        import sys, warnings
        warnings.simplefilter("ignore")
        from tracer import open_log
        from tracer.errors import LogError
        import torch
        whole = torch.load(sys.argv[2])
        try:
            with open_log(sys.argv[1]) as log:
                for t in range(len(log) + 1):
                    assert all(torch.equal(p, whole[t][n]) for n, p in log.parameters(t).items())
                print(len(list(log.steps())), "steps")
        except LogError as error:
            print("LogError", error)
    """
    torch.save(whole, tmp_path / "whole.pt")
    done = script(torn, torn_path, tmp_path / "whole.pt")
    assert done.returncode == 0, done.stderr
    assert "steps" in done.stdout or "LogError" in done.stdout, done.stdout


def test_killed_before_its_first_row(tmp_path, monkeypatch):
    """The log has its name already, and nothing in it."""
    path = tmp_path / "run.h5"
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(LogWriter, "begin", lambda *_, **__: os._exit(0))
        Run(path).train(1).optimizer.flush()
    os.waitpid(child, 0)
    with pytest.warns(LogWarning, match="It holds 0 whole steps"), open_log(path) as log:
        assert len(log) == 0
    Run(path, resume=True).train(2).close()
    with open_log(path) as log:
        assert len(log) == 2
