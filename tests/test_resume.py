"""A resumed run's log is the uninterrupted one's, bit for bit, whatever interrupted it."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import pytest
import torch
from training import Run, assert_equal_logs, build

from tracer import TracingSGD, open_log
from tracer.errors import TracingError

STEPS = 23


@pytest.fixture
def whole(tmp_path):
    """The uninterrupted log."""

    def make(rule, **options):
        path = tmp_path / "whole.h5"
        run = Run(path, rule=rule, state_every=5, **options).train(STEPS)
        run.close()
        return path, run

    return make


@pytest.mark.parametrize("compression", ["none", "delta"])
@pytest.mark.parametrize("rule", ["Adam", "SGD"])
@pytest.mark.parametrize("stop", [1, 4, 5, 12, 22])
def test_after_close(whole, tmp_path, rule, stop, compression):
    options = {"compression": compression, "named": stop != 12}  # IDs are text, or numbers
    expected, reference = whole(rule, **options)
    path = tmp_path / "run.h5"
    Run(path, rule=rule, state_every=5, **options).train(stop).close()
    torch.manual_seed(999)
    run = Run(path, rule=rule, state_every=5, resume=True, **options)
    assert run.optimizer.position == (stop, (stop - 1) // 7)
    run.train(STEPS).close()
    assert_equal_logs(path, expected)
    for a, b in zip(
        run.model.state_dict().values(), reference.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    with open_log(path) as log:
        assert [step for step, _ in log.segments()] == [0, stop]


def killed(path, stop, **options):
    """Train in a process that is gone without closing anything."""
    child = os.fork()
    if child == 0:
        run = Run(path, **options).train(stop)
        run.optimizer.flush()
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("named", [True, False], ids=["text", "numbers"])
@pytest.mark.parametrize(("stop", "back"), [(3, 0), (5, 5), (13, 10), (21, 20)])
def test_after_kill(whole, tmp_path, stop, back, named, capfd):
    expected, _ = whole("Adam", named=named)
    path = tmp_path / "run.h5"
    killed(path, stop, state_every=5, named=named)
    run = Run(path, state_every=5, resume=True, named=named)
    assert run.optimizer.position[0] == back
    assert f"resuming {path} at step {back}, its last full state; {stop - back} later steps" in (
        capfd.readouterr().err
    )
    run.train(STEPS).close()
    assert_equal_logs(path, expected)


def test_resumed_twice_and_killed_between(whole, tmp_path):
    expected, _ = whole("Adam")
    path = tmp_path / "run.h5"
    Run(path, state_every=5).train(8).close()  # a passing state, before step 8
    killed(path, 9, state_every=5, resume=True)
    run = Run(path, state_every=5, resume=True)
    assert run.optimizer.position[0] == 8
    run.train(12).close()
    run = Run(path, state_every=5, resume=True).train(STEPS)
    run.close()
    assert_equal_logs(path, expected)


def test_torn_state_falls_back_to_the_one_before(tmp_path):
    path = tmp_path / "run.h5"
    Run(path, state_every=5).train(12).close()
    with h5py.File(path, "r+") as file:
        file["snap/opt"][-3] ^= 1
    run = Run(path, state_every=5, resume=True)
    assert run.optimizer.position[0] == 10
    run.close()


def test_nothing_to_resume_begins_anew(tmp_path, capfd):
    run = Run(tmp_path / "run.h5", resume=True)
    assert "there is no step in" in capfd.readouterr().err
    assert run.optimizer.position == (0, None)
    run.train(2).close()


def test_another_model(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(2).close()
    before = path.read_bytes()
    with pytest.raises(TracingError, match=r"'0.weight' is float32 \(7, 4\) in the model and flo"):
        Run(path, width=7, resume=True)
    assert path.read_bytes() == before
    assert not path.with_name("run.h5.lock").exists()


def test_another_optimizer(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(2).close()
    with pytest.raises(
        TracingError, match="its optimizer is 'torch.optim.AdamW', now it is 'torch"
    ):
        Run(path, rule="SGD", resume=True)


def test_another_reduction(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(2).close()
    with pytest.raises(TracingError, match="its reduction is 'mean', now it is 'sum'; resume with"):
        Run(path, reduction="sum", resume=True)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_reader_holds_the_file(tmp_path, elsewhere):
    path = tmp_path / "run.h5"
    Run(path).train(2).close()
    if elsewhere:
        code = f"import h5py, sys; f = h5py.File({str(path)!r}); print(1, flush=True); input()"
        reader = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        reader.stdout.readline()
        with pytest.raises(TracingError, match="a reader has it open .*close it and resume again"):
            Run(path, resume=True)
        reader.communicate(b"\n")
    else:
        with (
            open_log(path),
            pytest.raises(TracingError, match="a reader has it open .*close it and resume again"),
        ):
            Run(path, resume=True)
    Run(path, resume=True).train(4).close()
    with open_log(path) as log:
        assert len(log) == 4


def test_state_every_is_under_one_percent(tmp_path):
    path = tmp_path / "run.h5"
    run = Run(path, rule="SGD", width=500).train(450)
    run.close()
    with open_log(path) as log:
        states = log.states()
    row = sum(p.nbytes for p in run.model.parameters())
    assert 200 <= states[1] < 300
    assert states == [0, states[1], 450] or states == [0, states[1], 2 * states[1], 450]
    assert 2 * row / (states[1] * row) <= 0.01  # parameters and momentum


def test_what_cannot_be_stored_is_said_once(tmp_path):
    path = tmp_path / "run.h5"
    model = build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    sgd.param_groups[0]["note"] = object()
    with (
        pytest.warns(
            UserWarning, match="cannot be resumed: the state.*'note'.* is a object"
        ) as seen,
        TracingSGD(sgd, model, path, state_every=1) as optimizer,
    ):
        for _ in range(3):
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step(batch_ids=[0, 1, 2])
    assert len(seen) == 1
    with open_log(path) as log:
        assert (len(log), log.states()) == (3, [])
    with pytest.raises(TracingError, match="it holds no whole state; pass overwrite=True"):
        TracingSGD(sgd, model, path, resume=True)
