"""What a log will take is said before, at the first step where that shows it, and when asked."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from tests.helpers.training import Run
from tracer import TracingOptimizer, TracingSGD
from tracer.errors import TracingWarning

BATCH = 4 * 3000 * 50  # bytes of one


@pytest.fixture
def free(monkeypatch):
    """Return a function that says how much is free on every disk."""

    def say(size):
        usage = shutil._ntuple_diskusage(10**9, 0, size)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return say


def traced(path, **options):
    """Return a model and its optimizer, which records batches."""
    model = torch.nn.Linear(50, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, TracingSGD(sgd, model, path, record="batches", **options)


def step(model, optimizer, examples=3000, parts=1):
    """Take a step; return the bytes of its batches."""
    size = 0
    for _ in range(parts):
        x = torch.randn(examples, 50)
        optimizer.observe(range(examples), batch=x)
        model(x).sum().backward()
        size += x.nbytes
    optimizer.step()
    return size


def test_recorded_batches_are_counted(tmp_path, free, capfd):
    free(5_000_000)
    path = tmp_path / "run.h5"
    model, optimizer = traced(path, steps=20)
    said = capfd.readouterr().err
    assert said.endswith("for 20 steps; 5 MB free; recorded batches come on top\n")
    assert optimizer.forecast(20).batches is None
    with pytest.warns(TracingWarning, match=r"will not fit: .*606 kB a step \(600 kB of it") as w:
        step(model, optimizer)
    assert (len(w), w[0].filename) == (1, __file__)
    assert "a step (600 kB of it recorded batches, before compression), 12.1 MB" in (
        capfd.readouterr().err
    )
    for _ in range(5):
        step(model, optimizer)
    assert not capfd.readouterr().err
    forecast = optimizer.forecast(6)
    assert BATCH <= forecast.batches < BATCH + 500
    optimizer.close()
    assert 0.9 * forecast.bytes < path.stat().st_size < 1.1 * forecast.bytes


def test_batches_that_fit_are_not_warned_of(tmp_path, free, capfd):
    free(13_000_000)
    model, optimizer = traced(tmp_path / "run.h5", steps=20)
    step(model, optimizer)
    optimizer.close()
    assert "12.1 MB for 20 steps; 13 MB free\n" in capfd.readouterr().err


def test_steps_of_different_size_count_on_average(tmp_path):
    model, optimizer = traced(tmp_path / "run.h5")
    sizes = [step(model, optimizer, 100), step(model, optimizer, 50, parts=4)]
    assert sum(sizes) / 2 <= optimizer.forecast(2).batches < sum(sizes) / 2 + 1000
    optimizer.close()


def test_a_folder_that_is_gone_is_not_asked(tmp_path, capfd):
    (tmp_path / "folder").mkdir()
    model, optimizer = traced(tmp_path / "folder" / "run.h5")
    shutil.rmtree(tmp_path / "folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracingWarning)
        step(model, optimizer)
        optimizer.close()


def test_asked_for_too_many_steps_it_warns(tmp_path, free):
    run = Run(tmp_path / "run.h5")
    free(1_000_000)
    assert run.optimizer.forecast(100).fits
    with pytest.warns(TracingWarning, match=r"will not fit: .*for 1,000 steps; 1 MB free") as found:
        assert not run.optimizer.forecast(1000).fits
    assert (len(found), found[0].filename) == (1, __file__)
    run.train(1).close()


def test_coded_rows_are_counted_before_coding(tmp_path):
    forecasts, sizes = [], []
    for compression in ("none", "delta"):
        path = tmp_path / f"{compression}.h5"
        run = Run(path, width=3000, compression=compression)
        forecasts.append(run.optimizer.forecast(40))
        run.train(40).close()
        sizes.append(path.stat().st_size)
    assert forecasts[0].bytes == forecasts[1].bytes
    assert sizes[1] < forecasts[1].bytes < sizes[0] < 1.25 * forecasts[0].bytes  # with full states


def test_a_resumed_run_has_room_that_its_log_takes_already(tmp_path, free, capfd):
    path = tmp_path / "run.h5"
    model, optimizer = traced(path)
    for _ in range(10):
        step(model, optimizer)
    optimizer.close()
    written = path.stat().st_size
    free(12_200_000 - written)
    capfd.readouterr()
    model, optimizer = traced(path, resume=True, steps=20)  # no warning: all that is to come fits
    said = capfd.readouterr().err
    assert "(600 kB of it recorded batches" in said
    assert "free besides the 5." in said
    assert BATCH <= optimizer.forecast(20).batches < BATCH + 500
    step(model, optimizer)
    assert not capfd.readouterr().err
    with pytest.warns(TracingWarning, match="will not fit"):
        optimizer.forecast(21)
    optimizer.close()


@pytest.mark.parametrize(
    ("width", "steps", "said"),
    [
        (20_000, None, "parameters of every step; "),  # 80 kB a step
        (50_000, None, "a full state every 100 steps, a digest of every step (snapshot_every=1: "),
        (50_000, 1000, "parameters of every step; "),  # 200 MB in all
        (50_000, 9000, "a full state every 100 steps"),
    ],
)
def test_auto_is_every_step_while_that_stays_small(tmp_path, capfd, width, steps, said):
    """One line and ``forecast`` say which; the class for SGD alone behaves like the other."""
    for kind in (TracingSGD, TracingOptimizer):
        model = torch.nn.Linear(width, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = kind(sgd, model, tmp_path / f"{kind.__name__}.h5", steps=steps)
        line = capfd.readouterr().err
        assert said in line
        assert said in str(optimizer.forecast(steps or 1))
        assert "B a step" in line
        optimizer._log.give_up()
