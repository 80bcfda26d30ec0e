"""The report page from the command line."""

from __future__ import annotations

import sys

import pytest

from replay import Influence
from replay.report import figures
from tests.helpers.command import run

MAIN = ("--log", "run.h5", "--test", "ids.txt", "--method", "tracin", "--method", "ideal")


@pytest.fixture
def result(folder, capsys, monkeypatch):
    """A result beside its log, with its page; the page has one figure, since each takes long."""
    one = {name: lambda *_: [] for name in ("_agreement", "_taylor", "_truth", "_self")}
    for name, none in one.items():
        monkeypatch.setattr(figures, name, none)
    code, _, err = run(capsys, *MAIN, "--report")
    assert code == 0, err
    assert "wrote run.html" in err
    return folder / "run.influence.h5"


def test_the_main_job_writes_a_page_and_a_command_writes_it_again(result, folder, capsys):
    text = (folder / "run.html").read_text()
    assert "class 2" in text, "what Task.show says"
    assert 'data-value="a14"' in text
    (folder / "run.html").unlink()
    code, out, err = run(capsys, "report", result)
    assert (code, out) == (0, ""), err
    assert (folder / "run.html").read_text() == text
    (folder / "train.txt").write_text("a0\na1\n")
    left_out = ("--test", "ids.txt", "--leave-one-out", "train.txt")
    assert run(capsys, "counterfactual", "run.h5", *left_out)[0] == 0
    assert run(capsys, "self", "run.h5")[0] == 0
    counts = ("--counts", "1,2", "--placement", "even")
    assert run(capsys, "checkpoints", "run.h5", "--test", "ids.txt", *counts)[0] == 0
    more = ("--truth", "run.counterfactual.h5", "--self", "run.self.h5", "--top", 1)
    more += ("--checkpoints", "run.checkpoints.h5")
    code, _, err = run(capsys, "report", result, *more, "--out", "study.html")
    assert code == 0, err
    whole = (folder / "study.html").read_text()
    assert "Against counterfactual runs" in whole
    assert "How many checkpoints, and where" in whole
    assert "Self-influence: what may be mislabelled" in whole


def test_without_the_task_ids_stand_alone(result, folder, capsys):
    (folder / "work.py").rename(folder / "elsewhere.py")
    code, _, err = run(capsys, "report", result, "--overwrite")
    assert code == 0, err
    assert "Note: examples are shown by their IDs alone. task 'work.py:task': there is no" in err
    text = (folder / "run.html").read_text()
    assert "Examples are shown by their IDs alone: no task" in text
    assert "class 2" not in text
    code, _, err = run(capsys, "report", result, "--overwrite", "--task", "work.py:task")
    assert code == 2
    assert "there is no file work.py" in err
    code, _, err = run(capsys, "report", result, "--overwrite", "--task", "elsewhere.py:task")
    assert code == 0, err
    assert "class 2" in (folder / "run.html").read_text()
    found = Influence.load(result)
    found.attributes["task"] = ""
    found.save("bare.h5")
    (folder / "run.h5").unlink()
    assert run(capsys, "report", "bare.h5")[0] == 0
    text = (folder / "bare.html").read_text()
    assert "the result names none; --task does" in text.replace("&#39;", "'")
    assert "The log is not at hand: learning rates and visits are not shown." in text


def test_a_page_replaces_a_page_and_nothing_else(result, folder, capsys):
    kept = (folder / "run.html").read_bytes()
    code, _, err = run(capsys, "report", result)
    assert (code, "run.html exists; choose another path or overwrite" in err) == (2, True)
    code, _, err = run(capsys, *MAIN, "--report", "--overwrite")
    assert code == 0, err
    assert (folder / "run.html").read_bytes() == kept, "the same result, the same page"
    (folder / "notes.html").write_text("<html>mine</html>")
    for place in ("notes.html", "run.h5", "run.influence.h5", "work.py", "ids.txt"):
        before = (folder / place).read_bytes()
        code, _, err = run(capsys, "report", result, "--out", place, "--overwrite")
        assert code == 2, place
        assert (folder / place).read_bytes() == before
    assert "the page would replace ids.txt, which is no page of tracin-replay.\n1. Choose" in err


def test_what_a_page_needs_is_named_before_the_work(folder, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("replay.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = run(capsys, *MAIN, "--report")
    assert code == 2
    assert "a report needs matplotlib and jinja2, which are not installed; pip install" in err
    assert "'tracin-replay[report]'" in err
    assert not (folder / "run.influence.h5").exists()


def test_other_results_are_named(result, capsys):
    code, _, err = run(capsys, "report", "run.h5", "--out", "x.html")
    assert code == 2
    assert "run.h5 is a run log, not a result" in err
    code, _, err = run(capsys, "report", "gone.h5", "--out", "x.html")
    assert (code, "there is no result 'gone.h5'" in err) == (2, True)
