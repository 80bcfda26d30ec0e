"""What tests of the command line start from."""

from __future__ import annotations

import pytest

from tests.helpers.command import TASK, trace


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with a task, a log of four steps and a list of test IDs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(TASK)
    (tmp_path / "ids.txt").write_text("# two of them\na14  # first\n\na17\n")
    trace(tmp_path / "run.h5", "work.py:task")
    return tmp_path
