"""What ``verify`` prints of a log whose steps are taken again."""

from __future__ import annotations

import json
import re
from unittest.mock import Mock

import pytest
import torch

from replay import Replay
from replay.command.jobs import verify as job
from replay.command.program import run as program
from replay.results.reservation import reserved
from replay.steps.verify import NotVerified
from tests.helpers.jobs import Solo
from tests.helpers.sparse import STEPS, task, trace
from tracer.errors import InputError

TASK = """
import dataclasses
from tests.helpers import sparse
task = sparse.task()
labels = [1 - y if k == 11 else y for k, (x, y) in enumerate(task.train)]
label = dataclasses.replace(task, train=[(x, y) for (x, _), y in zip(task.train, labels)])
order = dataclasses.replace(task, loss=lambda m, b: sparse.loss(m, b) * (1 + 2e-7))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    trace(tmp_path / "run.h5", snapshot_every=5)
    (tmp_path / "tasks.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verify(capsys, *arguments):
    code = program(["verify", "run.h5", *arguments])
    out, err = capsys.readouterr()
    return code, "\n".join(line.rstrip() for line in out.splitlines()) + "\n", err


def test_a_table_of_proved_steps(folder, capsys):
    code, out, _ = verify(capsys, "--task", "tasks.py:task")
    assert code == 0
    assert f"proved bit for bit  {STEPS} of {STEPS} steps taken again" in out
    assert "first that differs  none" in out
    code, out, _ = verify(capsys, "--task", "tasks.py:task", "--json", "--sample", "3")
    found = json.loads(out)
    assert (code, found["compared"], found["proof"]["steps_not_proved"]) == (0, 3, 0)


def test_bits_that_differ(folder, capsys):
    code, out, _ = verify(capsys, "--task", "tasks.py:order")
    assert code == 0, "within tolerance"
    assert f"proved bit for bit  0 of {STEPS} steps" in out
    assert "first that differs  step 0\n" in out
    assert "1. that step's gradients differ already: other numbers" in out


def test_beyond_tolerance(folder, capsys):
    code, out, err = verify(capsys, "--task", "tasks.py:label", "--json")
    found = json.loads(out)
    first = found["first_step_that_differs"]
    assert (code, found["reproduce"], found["compared"]) == (1, False, first)
    assert f"step {first} of run.h5 does not reproduce" in found["finding"]
    assert f"The first step that is not the run's to the last bit is step {first}: " in err
    code, out, _ = verify(capsys, "--task", "tasks.py:label")
    assert (code, f"first that differs  step {first}\n" in out) == (1, True)


@pytest.mark.parametrize("name", ["task", "order", "label"])
def test_several_processes_say_the_same(folder, capsys, monkeypatch, name):
    asked = ("--task", f"tasks.py:{name}", "--json")
    code, out, err = verify(capsys, *asked)
    monkeypatch.setattr(job, "here", lambda: Solo(2))
    told = verify(capsys, *asked)
    assert (told[0], told[2]) == (code, err)
    found, expected = json.loads(told[1]), json.loads(out)
    if name == "label":  # what comes after the first that differs may be known, too
        del found["proof"], expected["proof"]
    assert found == expected
    assert not [path for path in folder.iterdir() if ".verify" in path.name]
    with reserved(folder / "run.verify"):
        told = "computes the result run.verify: .*\n1. Wait .*\n2. Take one process: leave out"
        assert re.search(told, verify(capsys, *asked)[2])


def test_several_processes_need_a_place(folder, capsys, monkeypatch):
    """A link to a log that lies where nothing can be written is one."""
    monkeypatch.setattr(job, "here", Solo)
    with monkeypatch.context() as patch:
        patch.setattr(job.tempfile, "TemporaryFile", Mock(side_effect=OSError(30, "Read-only")))
        assert "run.h5 names no task" in verify(capsys)[2]  # a wrong input is said first
        code, _, err = verify(capsys, "--task", "tasks.py:task")
    told = "run.h5 which steps reproduce, and nothing can be written there: Read-only.\n1. Take one"
    assert (code, told in err) == (2, True)
    (folder / "own").mkdir()
    (folder / "own" / "run.h5").symlink_to(folder / "run.h5")
    monkeypatch.chdir(folder / "own")
    assert verify(capsys, "--task", "../tasks.py:task")[0] == 0


def test_what_moved_parameters_beside_the_step(tmp_path):
    def clamp(t, model):
        if t == 5:
            with torch.no_grad():
                model[0].weight.clamp_(-0.05, 0.05)

    with pytest.warns(UserWarning, match="something wrote to the model's parameters before step 6"):
        trace(tmp_path / "run.h5", snapshot_every=STEPS, after=clamp)
    with pytest.raises(NotVerified, match="last bit is step 5: that step's gradients are the run"):
        Replay(tmp_path / "run.h5", task()).verify(progress=False)


def test_a_sample_is_a_number_of_steps(tmp_path):
    trace(tmp_path / "run.h5", snapshot_every=5)
    run = Replay(tmp_path / "run.h5", task())
    with pytest.raises(InputError, match="sample"):
        run.verify(sample=0, progress=False)
    found = run.verify(steps="2:9", sample=3, progress=False)
    assert len(found.steps) == 3
    assert set(found.steps) < set(range(2, 9))
    assert str(found).startswith("3 steps from ")
    assert run.verify(steps="2:9", sample=30, progress=False).steps == range(2, 9)
