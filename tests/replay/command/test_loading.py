"""Importing a task's file: it may not train again, and where it is looked for."""

from __future__ import annotations

import sys
from multiprocessing import process

import pytest
import torch
from torch import nn

from replay import Replay, load_task
from tests.helpers.command import TASK, run, trace
from tracer import TracingSGD, open_log
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


@pytest.mark.parametrize("name", ["made.py:task", "made_too:task"])
def test_a_task_where_the_run_was_made_is_named_and_not_run(
    folder, tmp_path_factory, capsys, monkeypatch, name
):
    """Whoever wrote the log chose that folder."""
    away = tmp_path_factory.mktemp("an other")
    file = f"{name.removesuffix(':task').removesuffix('.py')}.py"
    (folder / file).write_text(f"print('it runs')\n{TASK}")
    trace(folder / "there.h5", name)
    (away / "run.h5").write_bytes((folder / "there.h5").read_bytes())
    monkeypatch.chdir(away)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(folder))])
    code, out, err = run(capsys, "verify", "run.h5")
    assert code == 2
    assert "it runs" not in out
    assert f"made in {folder}, which has one: if you trust it, " in " ".join(err.split())
    if name == "made_too:task":
        assert f"trust it, run from {folder}." in " ".join(err.split())
        return
    assert f"trust it, pass --task {folder}/made.py:task." in " ".join(err.split())
    assert run(capsys, "verify", "run.h5", "--task", f"{folder}/made.py:task")[0] == 0


@pytest.mark.parametrize("made", ["", "elsewhere", "/none", "/a\x1b[2J", "/" + "a" * 5000])
def test_a_directory_of_which_nothing_is_said(folder, made):
    with pytest.raises(TaskError, match=r"\(Python: task=\)\.$"):
        load_task("none.py:task", trusted=False, made=made)


def test_only_a_log_that_names_a_task_has_the_directory(folder):
    for name, expected in (("work.py:task", str(folder)), (None, "")):
        trace(folder / "named.h5", name)
        with open_log(folder / "named.h5") as log:
            assert log.metadata["directory"] == expected
        (folder / "named.h5").unlink()
