"""A resumed run's log is the uninterrupted one's, bit for bit, whatever interrupted it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import h5py
import pytest
import torch
from torch.optim import lr_scheduler

from tests.helpers.training import Run, assert_equal_logs, batch, build, script
from tracer import TracingOptimizer, TracingSGD, open_log
from tracer.errors import LogWarning, TracingError

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


@pytest.mark.parametrize("every", [5, "epoch"])
@pytest.mark.parametrize("stop", [4, 5, 12, 14])
def test_a_log_with_few_snapshots(tmp_path, stop, every):
    options = {"snapshot_every": every}
    expected, path = tmp_path / "whole.h5", tmp_path / "run.h5"
    Run(expected, **options).train(STEPS).close()
    Run(path, **options).train(stop).close()
    run = Run(path, resume=True, **options)
    assert run.optimizer.position[0] == stop
    run.train(STEPS).close()
    assert_equal_logs(path, expected)


def killed(path, stop, **options):
    """Train in a process that is gone without closing anything."""
    child = os.fork()
    if child == 0:
        run = Run(path, **options).train(stop)
        run.optimizer.flush()
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("named", [True, False], ids=["text", "numbers"])
@pytest.mark.parametrize("kind", ["snapshot_every", "state_every"])
@pytest.mark.parametrize(("stop", "back"), [(3, 0), (5, 5), (13, 10), (21, 20)])
def test_after_kill(tmp_path, stop, back, kind, named, capfd):
    expected, path, how = tmp_path / "whole.h5", tmp_path / "run.h5", {"named": named, kind: 5}
    Run(expected, **how).train(STEPS).close()
    killed(path, stop, **how)
    run = Run(path, resume=True, **how)
    assert run.optimizer.position[0] == back
    assert f"resuming {path} at step {back}, its last full state; {stop - back} later steps" in (
        capfd.readouterr().err
    )
    run.train(STEPS).close()
    assert_equal_logs(path, expected)


@pytest.mark.parametrize("kind", ["snapshot_every", "state_every"])
def test_resumed_twice_and_killed_between(tmp_path, kind):
    expected, path, how = tmp_path / "whole.h5", tmp_path / "run.h5", {kind: 5}
    Run(expected, **how).train(STEPS).close()
    Run(path, **how).train(8).close()  # a passing state, before step 8
    killed(path, 9, resume=True, **how)
    run = Run(path, resume=True, **how)
    assert run.optimizer.position[0] == 8
    run.train(12).close()
    run = Run(path, resume=True, **how).train(STEPS)
    run.close()
    assert_equal_logs(path, expected)


SCHEDULES = {
    "step": lambda o: lr_scheduler.StepLR(o, 4, gamma=0.3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 30),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=15),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=6),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[6],
    ),
    "chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=8), lr_scheduler.StepLR(o, 5)]
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("ending", ["killed", "closed"])
def test_schedules(whole, tmp_path, schedule, ending):
    """The recipe of docs/log-format.md, which ``Run`` follows, gives every step's rate again."""
    options = {"rule": "SGD", "schedule": schedule}
    expected, _ = whole(**options)
    path = tmp_path / "run.h5"
    if ending == "killed":
        killed(path, 13, state_every=5, **options)
    else:
        Run(path, state_every=5, **options).train(13).close()
    Run(path, state_every=5, resume=True, **options).train(STEPS).close()
    assert_equal_logs(path, expected)


class Changing(Run):
    """Clips weights and halves momentum between two steps."""

    def step(self):
        super().step()
        self.change()

    @torch.no_grad()
    def change(self):
        for parameter, state in self.inner.state.items():
            parameter.clamp_(-0.2, 0.2)
            state["exp_avg"].mul_(0.5)
        self.model[1].running_mean.mul_(0.5)


def flushed_early(run):
    """Train ten steps; flush before the last change, so that the state must be taken again."""
    run.train(9)
    Run.step(run)
    run.optimizer.flush()
    run.change()
    return run


@pytest.mark.filterwarnings("ignore:.*parameters:tracer.errors.TracingWarning")
@pytest.mark.parametrize("kind", ["snapshot_every", "state_every"])
@pytest.mark.parametrize("ending", ["killed", "flushed", "closed", "closed at a regular state"])
def test_what_changes_between_steps_is_as_the_next_step_found_it(tmp_path, ending, kind):
    path, expected, how = tmp_path / "run.h5", tmp_path / "whole.h5", {kind: 5}
    run = Changing(expected, **how)
    if not ending.startswith("closed"):
        flushed_early(run)
    run.train(STEPS).close()
    if ending.startswith("closed"):
        Changing(path, **how).train(12 if ending == "closed" else 10).close()
    else:
        child = os.fork()
        if child == 0:
            run = flushed_early(Changing(path, **how))
            if ending == "flushed":
                torch.manual_seed(3)  # random state is the one right after the step
            else:
                run.train(12)
            run.optimizer.flush()
            os._exit(0)
        os.waitpid(child, 0)
    run = Changing(path, resume=True, **how)
    assert run.t == (12 if ending == "closed" else 10)
    run.train(STEPS).close()
    assert_equal_logs(path, expected)


@pytest.mark.parametrize("kind", ["snapshot_every", "state_every"])
def test_torn_state_falls_back_to_the_one_before(tmp_path, kind):
    Run(path := tmp_path / "run.h5", **{kind: 5}).train(12).close()
    with h5py.File(path, "r+") as file:
        file["snap/opt"][-3] ^= 1
    run = Run(path, resume=True, **{kind: 5})
    assert run.optimizer.position[0] == 10
    run.close()


def test_nothing_to_resume_begins_anew(tmp_path, capfd):
    run = Run(tmp_path / "run.h5", resume=True)
    assert "there is no step in" in capfd.readouterr().err
    assert run.optimizer.position == (0, None)
    run.train(2).close()


def test_another_model(tmp_path):
    Run(path := tmp_path / "run.h5").train(2).close()
    before = path.read_bytes()
    with pytest.raises(TracingError, match=r"'0.weight' is float32 \(7, 4\) in the model and flo"):
        Run(path, width=7, resume=True)
    assert path.read_bytes() == before
    assert not path.with_name("run.h5.lock").exists()


def test_another_optimizer(tmp_path):
    Run(path := tmp_path / "run.h5").train(2).close()
    with pytest.raises(
        TracingError, match="its optimizer is 'torch.optim.AdamW', now it is 'torch"
    ):
        Run(path, rule="SGD", resume=True)


def test_another_reduction(tmp_path):
    Run(path := tmp_path / "run.h5").train(2).close()
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


def half(model):
    """Return SGD on bfloat16 parameters, its momentum in float32."""
    model.bfloat16()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for parameter in model.parameters():
        sgd.state[parameter]["momentum_buffer"] = torch.full(parameter.shape, 0.1)
    return sgd


@pytest.mark.parametrize(
    ("dtype", "rule"),
    [(torch.bfloat16, half), (torch.float64, lambda m: torch.optim.NAdam(m.double().parameters()))],
    ids=["float32 momentum of bfloat16", "float32 product of NAdam in float64"],
)
def test_state_keeps_its_dtypes(tmp_path, dtype, rule):
    path, logs = tmp_path / "run.h5", [tmp_path / "whole.h5", tmp_path / "run.h5"]

    def traced(log, **options):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        return model, TracingOptimizer(rule(model), model, log, state_every=1, **options)

    def train(model, optimizer, steps):
        for t in steps:
            optimizer.zero_grad()
            model(batch(t)[1].to(dtype)).square().mean().backward()
            optimizer.step(batch_ids=[0] * (5 + t % 2))
        optimizer.close()

    train(*traced(logs[0]), range(9))
    train(*traced(path), range(4))
    model, optimizer = traced(path, resume=True)
    kinds = {v.dtype for state in optimizer.state.values() for v in state.values()}
    assert torch.float32 in kinds
    train(model, optimizer, range(4, 9))
    assert_equal_logs(*logs)


def test_a_schedule_may_move_before_the_first_resumed_step(tmp_path):
    """Torch warns of a schedule that moves before any step; of a resumed one there were some."""
    path = tmp_path / "run.h5"
    Run(path).train(3).close()
    run = Run(path, resume=True)
    assert run.inner.param_groups[0]["lr"] == 0.01 / 4
    run.close()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_a_file_that_is_read_only(tmp_path, closed):
    path = tmp_path / "run.h5"
    if closed:
        Run(path).train(3).close()
    else:
        killed(path, 3)
    path.chmod(0o444)
    before = path.read_bytes()
    with pytest.raises(
        TracingError,
        match=r"cannot resume .*run.h5: it holds 3 whole steps but cannot be written \(.*the file "
        r"is read-only.*\); nothing was changed. Make the file and its folder writable, or copy it",
    ):
        Run(path, resume=True)
    assert path.read_bytes() == before


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    Run(path).train(3).close()
    opened = os.open

    def refuse(file, flags, *rest, **named):
        if str(file).endswith(".lock") and flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TracingError, match=r"holds 3 whole steps but cannot be .*Permission"):
        Run(path, resume=True)


LIMITED = """
    import os, resource, sys, torch
    from tests.helpers.training import Run
    limit = int(float(sys.argv[2]) * os.path.getsize(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run = Run(sys.argv[1], width=200, state_every=5, resume=True)
    assert run.t == 10
    assert run.optimizer._log.channel.stopped is (sys.argv[2] == "0.5")
    run.train(40).close()
    plain = Run(width=200).train(40)
    left, right = run.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)
"""


@pytest.mark.parametrize(("share", "left"), [("0.5", 13), ("1", 13)])
def test_a_file_size_limit(tmp_path, share, left):
    """Whether it is met in the constructor or later: training goes on, what is logged stays."""
    path = tmp_path / "run.h5"
    killed(path, 13, width=200, state_every=5)
    done = script(LIMITED, path, share)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("TracingWarning: tracing stopped") == 1, done.stderr
    assert f"is closed with {left} complete steps" in done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)
        with open_log(path) as log:
            assert len(list(log.steps())) == left
            assert log.parameters(left)
