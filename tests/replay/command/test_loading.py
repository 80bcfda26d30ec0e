"""Importing a task's file: it may not train again, and where it is looked for."""

from __future__ import annotations

import sys
from multiprocessing import process

import pytest
import torch
from torch import nn

from replay import Replay, load_task
from tests.helpers.command import TASK, run, trace
from tracer import TracingSGD
from tracer.errors import TaskError, TracingError

GUARD = 'put the training, with the wrapper, under: if __name__ == "__main__":'
WHOLE = (
    TASK
    + """
from tracer import TracingSGD
model = build()
how = {"resume": True} if "resume" in NAME else {"overwrite": "overwrite" in NAME}
sgd = torch.optim.SGD(model.parameters(), lr=0.5)
with TracingSGD(sgd, model, "run.h5", task=NAME, **how) as optimizer:
    loss(model, task.collate([train["a0"]])).mean().backward()
    optimizer.step(batch_ids=["a0"])
"""
)


@pytest.mark.parametrize("how", ["overwrite", "resume", "new"])
@pytest.mark.parametrize("place", ["{}.py:task", "{}:task"])
def test_a_program_without_a_guard_does_not_train_again(folder, capsys, how, place):
    """Its log would be replaced by the replay that reads it."""
    name = f"whole_{how}_{len(place)}"
    (folder / f"{name}.py").write_text(WHOLE.replace("NAME", repr(name)))
    kept = (folder / "run.h5").read_bytes()
    code, _, err = run(capsys, "verify", "run.h5", "--task", place.format(name))
    assert code == 2
    assert f"{name}.py for its task began to train, which would write a log anew" in err
    assert GUARD in err
    assert "overwrite=True" not in err
    assert (folder / "run.h5").read_bytes() == kept
    assert name not in sys.modules  # half of it


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sys.exit(0)", "failed: SystemExit: 0"),
        ("Replay('run.h5', 'odd.py:task')", "loads that task itself; put the replay under: if"),
    ],
)
def test_other_programs_without_a_guard(folder, capsys, line, message):
    (folder / "odd.py").write_text(f"import sys\nfrom replay import Replay\n{TASK}\n{line}\n")
    code, _, err = run(capsys, "verify", "run.h5", "--task", "odd.py:task")
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_worker_that_imports_its_program_does_not_train(tmp_path, monkeypatch):
    """As DataLoader's workers do where processes are spawned."""
    model = nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(process.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(TracingError, match="a worker process imported .* put the training"):
        TracingSGD(sgd, model, tmp_path / "run.h5", overwrite=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["work.py:task", "beside:task"])
def test_a_task_beside_the_log(folder, capsys, monkeypatch, name):
    (folder / "beside.py").write_text(TASK)
    trace(folder / "named.h5", name)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(folder))])
    sys.modules.pop("beside", None)
    assert run(capsys, "verify", "../named.h5")[0] == 0
    sys.modules.pop("beside", None)
    with pytest.raises(TaskError, match=r"no file none.py in .*elsewhere or /.*; run from"):
        Replay("../run.h5", "none.py:task")
    with pytest.raises(TaskError, match=r"no file work.py in .*elsewhere; run from"):
        load_task("work.py:task", trusted=True)
