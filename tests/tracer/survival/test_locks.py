"""One writer a log, whatever name it is opened by."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import threading
import time

import h5py
import pytest

from tests.helpers.training import Run, script, unclosed
from tracer import open_log
from tracer.errors import LogError, LogWarning, TracingError, TracingWarning
from tracer.log.locking import is_being_written


def test_two_writers_in_one_process(tmp_path):
    path = tmp_path / "run.h5"
    run = Run(path).train(2)
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(LogError, match="is being written in this process already; close that"):
            Run(path, **options)
    run.train(4).close()
    with open_log(path) as log:
        assert len(log) == 4
    Run(path, overwrite=True).train(1).close()


def test_two_writers_in_two_processes(tmp_path):
    path = tmp_path / "run.h5"
    run = Run(path).train(2)
    run.optimizer.flush()
    second = script(
        "import sys; from tests.helpers.training import Run; Run(sys.argv[1], overwrite=True)", path
    )
    assert second.returncode == 1
    assert f"run.h5 is being written by process {os.getpid()} on " in second.stderr
    run.close()


def test_a_process_that_is_gone_holds_no_lock(tmp_path):
    path = unclosed(tmp_path / "run.h5")
    assert path.with_name("run.h5.lock").exists()
    assert not is_being_written(path)
    Run(path, overwrite=True).train(1).close()


def test_the_lock_outlives_a_copy_of_the_folder(tmp_path):
    """Closing the lock file elsewhere in the process must not give the lock up."""
    folder = tmp_path / "folder"
    folder.mkdir()
    run = Run(folder / "run.h5").train(2)
    run.optimizer.flush()
    shutil.copytree(folder, tmp_path / "copy")
    second = script(
        "import sys; from tests.helpers.training import Run; Run(sys.argv[1], overwrite=True)",
        folder / "run.h5",
    )
    assert second.returncode == 1
    assert "run.h5 is being written by process" in second.stderr
    run.close()


def test_the_lock_dies_with_its_process_whatever_children_live(tmp_path):
    path = tmp_path / "run.h5"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run = Run(path).train(2)
        run.optimizer.flush()
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(60)
            os._exit(0)
        os.write(write, grandchild.to_bytes(4, "little"))
        time.sleep(60)
    grandchild = int.from_bytes(os.read(read, 4), "little")
    assert is_being_written(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        assert not is_being_written(path)
        Run(path, overwrite=True).train(1).close()
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_reader_that_looks_at_the_lock_does_not_keep_a_writer_out(tmp_path):
    path = tmp_path / "run.h5"
    lock = unclosed(path).with_name("run.h5.lock")
    with lock.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.03, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        Run(path, overwrite=True).train(1).close()


def test_another_name_of_a_live_log_is_not_repaired(tmp_path):
    path, link = tmp_path / "run.h5", tmp_path / "link.h5"
    run = Run(path).train(3)
    run.optimizer.flush()
    os.link(path, link)
    before = path.read_bytes()
    for attempt in (lambda: open_log(link), lambda: Run(link, resume=True)):
        with pytest.raises(
            LogError, match=r"link.h5 is marked as open and has 2 names \(hard links\): its writer"
        ):
            attempt()
    assert path.read_bytes() == before
    with open_log(path) as log:
        assert log.live
    run.train(5).close()
    with open_log(link) as log:
        assert len(log) == 5


def test_another_name_of_a_killed_log(tmp_path):
    path, link = unclosed(tmp_path / "run.h5"), tmp_path / "link.h5"
    os.link(path, link)
    with pytest.raises(LogError, match="open it by the name it was written under, or copy it"):
        open_log(link)
    with pytest.warns(LogWarning, match="superblock was repaired"):
        open_log(path).close()
    open_log(link).close()


def test_a_read_only_file_is_not_repaired(tmp_path):
    """Nor by root, whom nothing else would stop."""
    path = unclosed(tmp_path / "run.h5")
    path.chmod(0o444)
    before = path.read_bytes()
    with (
        pytest.warns(LogWarning, match=r"as if repaired, not changed \(the file is read-only\)"),
        open_log(path) as log,
    ):
        assert len(list(log.steps())) == 9
    assert path.read_bytes() == before


def test_what_is_read_here_is_not_replaced(tmp_path):
    """A task's file that trains when it is imported would replace the log that is replayed."""
    path, link = tmp_path / "run.h5", tmp_path / "link.h5"
    Run(path).train(4).close()
    os.link(path, link)
    log = open_log(link)
    with pytest.raises(TracingError, match=r"run.h5 is open for reading in this .*\n1. Close"):
        Run(path, overwrite=True)
    assert len(list(log.steps())) == 4
    log.close()
    Run(path, overwrite=True).train(2).close()
    circle = [open_log(path)]
    circle.append(circle)
    del circle  # a replay that nobody has any more
    Run(path, overwrite=True).train(1).close()
    with open_log(path) as log:
        assert len(log) == 1


def test_overwriting_keeps_what_a_reader_has_open(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(4).close()
    with open_log(path) as log:
        trained = script(
            "import sys; from tests.helpers.training import Run; "
            "Run(sys.argv[1], overwrite=True).train(2).close()",
            path,
        )
        assert trained.returncode == 0, trained.stderr
        assert len(list(log.steps())) == 4
    with open_log(path) as log:
        assert len(log) == 2


def test_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    run = Run("run.h5")
    os.chdir("below")
    run.train(3)
    os.chdir("..")
    run.train(5).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["below", "run.h5"]
    with open_log("run.h5") as log:
        assert len(log) == 5


def test_symbolic_links_are_the_log(tmp_path):
    path, link = tmp_path / "run.h5", tmp_path / "link.h5"
    link.symlink_to(path)
    run = Run(path, state_every=2).train(4)
    run.optimizer.flush()
    with pytest.raises(LogError, match="link.h5 is being written in this process already"):
        Run(link, resume=True)
    with open_log(link) as log:
        assert not log.metadata["closed"]
    run.train(6).close()
    Run(link, overwrite=True).train(2).close()
    assert link.is_symlink()
    with open_log(path) as log:
        assert len(log) == 2


BESIDE = {
    "link": (lambda p: p.symlink_to("precious"), "a symbolic link"),
    "dangling": (lambda p: p.symlink_to("absent"), "a symbolic link"),
    "pipe": (os.mkfifo, "a pipe"),
    "folder": (lambda p: p.mkdir(), "a folder"),
    "text": (lambda p: p.write_text("precious"), "a file of something else"),
}


def names(folder):
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("make", "what"), BESIDE.values(), ids=BESIDE)
def test_what_stands_beside_a_log_is_left_alone(tmp_path, make, what):
    """Archives carry links; a pipe would hang."""
    path = unclosed(tmp_path / "run.h5")
    path.with_name("run.h5.lock").unlink()
    (tmp_path / "precious").write_text("precious")
    for name in ("run.h5.lock", "run.h5.new"):
        make(tmp_path / name)
    before = names(tmp_path), path.read_bytes()
    said = rf"repaired, not changed \(run.h5.lock beside it is {what}, not a writer's lock\)"
    with pytest.warns(LogWarning, match=said), open_log(path) as log:
        assert len(list(log.steps())) == 9
    assert not is_being_written(path)
    refused = rf"{what}, not a writer's lock"
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(TracingError, match=refused):
            Run(path, **options)
    with pytest.raises(
        TracingError, match=rf"{refused}.\n1. Choose .*\n2. Remove or rename .*lock"
    ):
        Run(path, overwrite=True)
    assert (names(tmp_path), path.read_bytes()) == before
    (tmp_path / "run.h5.lock").rename(tmp_path / "aside")
    Run(path, overwrite=True).train(2).close()  # beside run.h5.new
    assert names(tmp_path) == sorted({*before[0], "aside"} - {"run.h5.lock"})
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.fixture
def no_locks(monkeypatch):
    """Have a file system without locks."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_file_is_the_lock(tmp_path):
    path, lock = tmp_path / "run.h5", tmp_path / "run.h5.lock"
    with pytest.warns(TracingWarning, match=r"has no locks: the file run.h5.lock .* for one"):
        run = Run(path).train(3)
    assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    run.optimizer.flush()
    with open_log(path) as log:
        assert log.live
    run.close()
    assert not lock.exists()
    with open_log(path) as log:
        assert len(log) == 3


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(("where", "is_held"), [("here", False), ("elsewhere", True)])
def test_without_locks_a_killed_writer(tmp_path, where, is_held):
    """On this machine it is known to have ended; of another one the user must say so."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    path, lock = tmp_path / "run.h5", tmp_path / "run.h5.lock"
    lock.write_text(f"process {child} on {socket.gethostname() if where == 'here' else where}")
    assert is_being_written(path) is is_held
    if is_held:
        message = rf"by process {child} on elsewhere; stop that process, or remove .*lock if it has"
        with pytest.raises(LogError, match=message):
            Run(path)
        lock.unlink()
    with pytest.warns(TracingWarning, match="has no locks"):
        run = Run(path).train(1)
    assert str(os.getpid()) in lock.read_text()
    run.close()


def test_hdf5_without_locks(tmp_path, monkeypatch):
    """HDF5 takes locks of its own; where there are none, it is opened without."""
    Run(tmp_path / "run.h5").train(2).close()
    opened = h5py.File

    def refuse(name, mode, *, locking=True, **options):
        if locking:
            raise OSError(errno.ENOLCK, "unable to lock file, errno = 37")
        return opened(name, mode, locking=locking, **options)

    monkeypatch.setattr(h5py, "File", refuse)
    for _ in range(2):  # the second finds it open without
        log = open_log(tmp_path / "run.h5")
        assert len(log) == 2
        monkeypatch.undo()
