"""Kills, full disks, forks, two writers, forgotten files: no flushed step is lost."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kills import kill_one, reference
from torch.utils.data import DataLoader
from training import Run, assert_equal_logs, script

from tracer import TracingOptimizer, background, open_log, ring, schema, superblock, with_ids
from tracer.errors import LogError, LogWarning, TracingError, TracingWarning
from tracer.layout import joined
from tracer.locking import is_being_written
from tracer.repair import RepairedView
from tracer.tables import Tables
from tracer.writer import LogWriter

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def expected():
    return reference()


@pytest.mark.parametrize("k", range(20))
def test_kill(tmp_path, expected, k):
    rng = random.Random(k)
    found = kill_one(tmp_path / "run.h5", rng, expected, compression=("none", "delta")[k % 2])
    assert found["flushed"]
    assert found["repaired"]


def unclosed(path, steps=9, **options):
    """Return a run whose log is flushed and left as a kill would leave it."""
    child = os.fork()
    if child == 0:
        run = Run(path, **options).train(steps)
        run.optimizer.flush()
        os._exit(0)
    os.waitpid(child, 0)
    return path


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
    view = RepairedView(path)
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


@pytest.mark.parametrize("seed", range(12))
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


FULL = """
    import resource, sys, torch
    from training import Run
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
    run = Run(sys.argv[1], width=200)
    run.train(400)
    assert run.optimizer.position == (400, 57), run.optimizer.position
    if sys.argv[3] == "close":
        run.close()
    plain = Run(width=200).train(400)
    left, right = run.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)
    print("trained", flush=True)
"""


@pytest.mark.parametrize("ending", ["close", "forget"])
def test_file_size_limit(tmp_path, ending):
    path = tmp_path / "run.h5"
    check_stopped(script(FULL, path, "limit", ending), path)


def check_stopped(done, path):
    """Training went on, one warning came, the log holds what fitted."""
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
    assert done.stderr.count("TracingWarning: tracing stopped") == 1, done.stderr
    assert "training goes on untraced" in done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)
        with open_log(path) as log:
            steps = len(log)
            assert 5 < steps < 400
            assert [step.index for step in log.steps()] == list(range(steps))
            log.parameters(steps)
            said = int(done.stderr.split("It holds ")[1].split()[0])
    assert steps >= said


def test_full_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("this test may not mount a file system")
    try:
        check_stopped(script(FULL, folder / "run.h5", "", "close"), folder / "run.h5")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_folder_is_gone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    run = Run(folder / "run.h5").train(3)
    run.optimizer.flush()
    shutil.rmtree(folder)
    with pytest.warns(TracingWarning, match=r"stopped: .*run.h5 cannot be written .*No such"):
        run.train(5)
        time.sleep(0.2)
        run.train(40)
    assert run.optimizer.position == (40, 5)  # whatever became of the log
    run.close()
    plain = Run().train(40)
    for a, b in zip(
        run.model.state_dict().values(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    opened = os.open

    def refuse(file, flags, *rest, **named):
        if str(file).endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return opened(file, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.warns(TracingWarning, match=r"written .*Permission denied.*0 whole steps"):
        run = Run(tmp_path / "run.h5")
    run.train(3).close()
    assert not (tmp_path / "run.h5").exists()


def test_steps_are_counted_after_tracing_ended(tmp_path):
    """Those that were taken: not what a GradScaler skips, nor what ends with an exception."""
    model = torch.nn.Linear(2, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    optimizer = TracingOptimizer(inner, model, tmp_path / "run.h5")
    optimizer._log.feed.stopped = True
    scaler = torch.amp.GradScaler("cpu")
    for factor, taken in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum() * factor).backward()
        scaler.step(optimizer, batch_ids=[0])
        scaler.update()
        assert optimizer.position == (taken, None)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0, batch_ids=[0])
    assert optimizer.position == (2, None)
    optimizer.close()


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
    second = script("import sys; from training import Run; Run(sys.argv[1], overwrite=True)", path)
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
        "import sys; from training import Run; Run(sys.argv[1], overwrite=True)", folder / "run.h5"
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


def test_a_log_that_ends_on_a_full_disk_is_closed(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    run = Run(path).train(6)
    run.optimizer.flush()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LogWriter, "append", full)
    with pytest.warns(TracingWarning, match="No space left on device.*6 whole steps and is closed"):
        run.train(8).optimizer.flush()
    assert not superblock.is_marked_open(superblock.read(path))
    with open_log(path) as log:  # no warning
        assert len(log) == 6
    run.close()


def test_forked_process_leaves_the_log_alone(tmp_path):
    path, expected = tmp_path / "run.h5", tmp_path / "expected.h5"
    Run(expected).train(12).close()
    run = Run(path).train(5)
    run.optimizer.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with pytest.raises(TracingError, match="belongs to process"):
                run.step()
            run.close()
            number = run.optimizer._log.feed._background._writer._descriptor
            assert str(Path(f"/proc/self/fd/{number}").readlink()) == os.devnull
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_being_written(path)
    run.train(12).close()
    assert_equal_logs(path, expected)


def test_forked_process_that_exits_normally(tmp_path):
    code = """
        import os, sys
        from training import Run, assert_equal_logs, script
        Run(sys.argv[2]).train(12).close()
        run = Run(sys.argv[1]).train(5)
        child = os.fork()
        if child == 0:
            sys.exit(0)  # runs every exit handler
        os.waitpid(child, 0)
        run.train(12).close()
        assert_equal_logs(sys.argv[1], sys.argv[2])
    """
    done = script(code, tmp_path / "run.h5", tmp_path / "expected.h5")
    assert done.returncode == 0, done.stderr


class Rows(torch.utils.data.Dataset):
    """Examples that are read from an HDF5 file, in the workers."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 24

    def __getitem__(self, k):
        with h5py.File(self.path) as file:
            return torch.from_numpy(file["x"][k])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_data_loader_workers(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = torch.randn(24, 4).numpy()
    run = Run(tmp_path / "run.h5")
    for _ in range(2):
        loader = DataLoader(with_ids(Rows(tmp_path / "data.h5")), batch_size=6, num_workers=2)
        for ids, x in loader:
            run.optimizer.zero_grad()
            run.model(x).square().mean().backward()
            run.optimizer.step(batch_ids=ids)
    run.close()
    with open_log(tmp_path / "run.h5") as log:
        assert len(log) == 8
        assert log.batch_ids(7) == list(range(18, 24))


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
    monkeypatch.setattr(background, "_BURST", 60)
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


def test_exception_closes_the_log(tmp_path):
    path = tmp_path / "run.h5"
    with pytest.raises(RuntimeError, match="mine"), Run(path).optimizer as optimizer:
        model = optimizer._log.model
        for t in range(3):
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step(batch_ids=list(range(5)))
            if t == 2:
                raise RuntimeError("mine")
    with open_log(path) as log:
        assert (len(log), log.metadata["closed"]) == (3, True)
        assert log.states() == [0, 3]


def test_exception_inside_the_step_keeps_the_last_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    run = Run(path).train(4)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}

    def half(*_, **__):
        with torch.no_grad():
            run.model[0].weight.add_(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.inner, "step", half)
    with pytest.raises(KeyboardInterrupt):
        run.step()
    run.close()
    with open_log(path) as log:
        assert len(log) == 4
        assert log.states() == [0]
        assert all(torch.equal(p, before[n]) for n, p in log.parameters(4).items())


def test_forgotten_close(tmp_path):
    path = tmp_path / "run.h5"
    done = script("import sys; from training import Run; run = Run(sys.argv[1]).train(5)", path)
    assert done.returncode == 0, done.stderr
    with open_log(path) as log:
        assert (len(log), log.metadata["closed"]) == (5, True)


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


def test_no_room_for_the_tables(tmp_path):
    """HDF5 crashes there; training must not."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.warns(TracingWarning, match="written .*File too large.* holds 0 whole steps"):
            Run(tmp_path / "run.h5").train(2).close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(tmp_path.iterdir())


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


def test_overwriting_keeps_what_a_reader_has_open(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(4).close()
    with open_log(path) as log:
        Run(path, overwrite=True).train(2).close()
        assert len(list(log.steps())) == 4
    with open_log(path) as log:
        assert len(log) == 2


def test_no_room_is_said_before(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**6))
    with pytest.warns(TracingWarning, match=r"will not fit: .*run.h5: 6.36 kB a step, 6.37 MB"):
        run = Run(tmp_path / "run.h5", steps=1000)
    assert "run.h5: 6.36 kB a step, 6.37 MB for 1,000 steps; 1 MB free" in capfd.readouterr().err
    forecast = run.optimizer.forecast(100)
    assert forecast.fits
    assert forecast.steps == 100
    run.train(100).close()
    real = (tmp_path / "run.h5").stat().st_size
    assert forecast.bytes < real < forecast.bytes + 400_000


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
