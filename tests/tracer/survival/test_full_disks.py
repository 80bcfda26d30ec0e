"""Full disks and folders that are gone: training goes on, and the log keeps what fitted."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
import warnings

import pytest
import torch

from tests.helpers.training import Run, script
from tracer import TracingOptimizer, open_log
from tracer.errors import LogWarning, TracingError, TracingWarning
from tracer.hdf5 import superblock
from tracer.log.write.writer import LogWriter

FULL = """
    import resource, sys, torch
    from tests.helpers.training import Run
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
    every = int(sys.argv[4])
    run = Run(sys.argv[1], width=200, snapshot_every=every)
    run.train(400)
    assert run.optimizer.position == (400, 57), run.optimizer.position
    if sys.argv[3] == "close":
        run.close()
    plain = Run(width=200).train(400)
    left, right = run.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)
    print("trained", flush=True)
"""


BURST = """
    import resource, sys, torch
    from tracer import TracingSGD, open_log
    from tracer.thread import writer_thread
    writer_thread._BURST = 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    model = torch.nn.Linear(50_000, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TracingSGD(sgd, model, sys.argv[1], snapshot_every=1)
    for t in range(60):
        optimizer.zero_grad()
        model(torch.ones(1, 50_000)).sum().backward()
        optimizer.step(batch_ids=[t])
    optimizer.close()
    with open_log(sys.argv[1]) as log:
        print(len(log), len(list(log.steps())))
"""


def test_of_a_burst_what_fits_is_kept(tmp_path):
    done = script(BURST, tmp_path / "run.h5")
    assert done.stdout in ("11 11\n", "12 12\n"), done.stderr  # of 200 kB each, and w_0


@pytest.mark.parametrize(("ending", "every"), [("forget", 1), ("close", 5)])
def test_file_size_limit(tmp_path, ending, every):
    path = tmp_path / "run.h5"
    check_stopped(script(FULL, path, "limit", ending, every), path)


def check_stopped(done, path):
    """Training went on, one warning came, the log holds what fitted."""
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
    assert done.stderr.count("TracingWarning: tracing stopped") == 1, done.stderr
    assert "training continues without tracing" in done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)
        with open_log(path) as log:
            steps = len(log)
            assert 5 < steps < 400
            assert [step.index for step in log.steps()] == list(range(steps))
            log.parameters(steps if log.is_dense else log.states()[-1])
            said = int(done.stderr.split("is closed with ")[1].split()[0])
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
        check_stopped(script(FULL, folder / "run.h5", "", "close", 1), folder / "run.h5")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("every", [1, 5])
def test_the_folder_is_gone(tmp_path, every):
    folder = tmp_path / "folder"
    folder.mkdir()
    run = Run(folder / "run.h5", snapshot_every=every).train(3)
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
    remedies = r"Permission denied.\n1. Choose another path .*\n2. Make the folder .* writable"
    with pytest.raises(TracingError, match=rf"run.h5 cannot be written: {remedies}"):
        Run(tmp_path / "run.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("began", [False, True])
def test_a_log_that_cannot_be_made_counts_no_steps(tmp_path, monkeypatch, began):
    """Nor those of the run that it would have replaced, which stays."""
    if began:
        Run(tmp_path / "run.h5").train(7).close()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tracer.log.schema.create", full)
    with pytest.warns(TracingWarning, match="No log of this run was made, and none was changed"):
        Run(tmp_path / "run.h5", overwrite=True).train(3).close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_steps_are_counted_after_tracing_ended(tmp_path):
    """Those that were taken: not what a GradScaler skips, nor what ends with an exception."""
    model = torch.nn.Linear(2, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    optimizer = TracingOptimizer(inner, model, tmp_path / "run.h5")
    optimizer._log.channel.stopped = True
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


@pytest.mark.parametrize("every", [1, 4])
def test_a_log_that_ends_on_a_full_disk_is_closed(tmp_path, monkeypatch, every):
    path = tmp_path / "run.h5"
    run = Run(path, snapshot_every=every).train(6)
    run.optimizer.flush()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LogWriter, "append", full)
    with pytest.warns(TracingWarning, match="No space left on device.*with 6 complete steps"):
        run.train(8).optimizer.flush()
    assert not superblock.is_marked_open(superblock.read(path))
    with open_log(path) as log:  # no warning
        assert len(log) == 6
    run.close()


def test_no_room_for_the_tables(tmp_path):
    """HDF5 crashes there; training must not."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.warns(TracingWarning, match="written .*File too large.*No log of this run was"):
            Run(tmp_path / "run.h5").train(2).close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(tmp_path.iterdir())


def test_no_room_is_said_before(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**6))
    with pytest.warns(
        TracingWarning,
        match=r"will not fit: .*run.h5: parameters of every step; 6.36 kB a step, 6.37 MB",
    ):
        run = Run(tmp_path / "run.h5", steps=1000)
    assert (
        "run.h5: parameters of every step; 6.36 kB a step, 6.37 MB for 1,000 steps; 1 MB free"
        in capfd.readouterr().err
    )
    forecast = run.optimizer.forecast(100)
    assert forecast.fits
    assert forecast.steps == 100
    run.train(100).close()
    real = (tmp_path / "run.h5").stat().st_size
    assert forecast.bytes < real < forecast.bytes + 400_000
