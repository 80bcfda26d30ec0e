"""One writer a log, whatever name it is opened by."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
import time

import pytest

from tests.helpers.training import Run, script, unclosed
from tracer import open_log
from tracer.errors import LogError, LogWarning
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
    Run(path, overwrite=True).close()


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
        Run(path, overwrite=True).close()


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


def test_overwriting_keeps_what_a_reader_has_open(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(4).close()
    with open_log(path) as log:
        Run(path, overwrite=True).train(2).close()
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
