"""Two programs with one result: the second is told before the work."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

import pytest

from replay.results.reservation import reserved
from tests.helpers.command import TASK, run, started, trace
from tracer.errors import InputError


def test_the_second_is_told_and_the_third_goes_on(tmp_path):
    place, lock = tmp_path / "study.h5", tmp_path / "study.h5.lock"
    with reserved(place):
        told = rf"computes the result .*study.h5: process {os.getpid()} on .*\n1. Wait .*\n2. Cho"
        with pytest.raises(InputError, match=told), reserved(place):
            pass
        assert lock.exists()
    assert not lock.exists()
    with pytest.raises(KeyboardInterrupt), reserved(place):
        raise KeyboardInterrupt
    with reserved(place), reserved(tmp_path / "other.h5"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "hard link", "file"])
def test_what_is_no_lock_is_left_alone(tmp_path, kind):
    lock, precious = tmp_path / "study.h5.lock", tmp_path / "precious"
    precious.write_text("" if kind == "hard link" else "precious")
    {
        "link": lambda: lock.symlink_to(precious),
        "dangling link": lambda: lock.symlink_to(tmp_path / "nothing"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
        "hard link": lambda: lock.hardlink_to(precious),
        "file": lambda: lock.write_text("precious"),
    }[kind]()
    before = {p: (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in tmp_path.iterdir()}
    told = r"none of this program.\n1. Move it away"
    with pytest.raises(InputError, match=told), reserved(tmp_path / "study.h5"):
        pass
    assert {p: (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in tmp_path.iterdir()} == before


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with reserved(tmp_path / "study.h5"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_two_replays_of_one_result(tmp_path, monkeypatch, capsys, end):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(TASK)
    trace(tmp_path / "run.h5", "work.py:task")
    command = ["--log", "run.h5", "--test", "all", "--method", "tracin"]
    first = started(["-m", "replay", *command, "--task", "work.py:slow_task"])
    assert first.stdout is not None
    assert first.stdout.readline() == "computing\n"
    code, _, err = run(capsys, *command)
    assert (code, "took" in err) == (2, False)
    assert "\nError: another program computes the result run.influence.h5: process " in f"\n{err}"
    assert run(capsys, *command, "--out", "other.h5")[0] == 0
    first.send_signal(end)
    first.communicate(timeout=60)
    assert (tmp_path / "run.influence.h5.lock").exists() == (end == signal.SIGKILL)
    assert run(capsys, *command)[0] == 0
    assert not list(tmp_path.glob("*.lock"))
