"""Commands on several processes: one result, one voice, and nothing lost when a process dies."""

from __future__ import annotations

import random

import pytest

from replay.processes import group
from tests.helpers import killed_jobs
from tests.helpers.command import run
from tests.helpers.jobs import Solo
from tracer.errors import InputError


def test_a_killed_worker_loses_nothing(folder):
    (folder / "work.py").write_text(killed_jobs.BUSY)
    whole = killed_jobs.job("whole.h5")
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    assert killed_jobs.disturbed(folder, "killed.h5", random.Random(3), kills=1) == 1
    assert (folder / "killed.h5").read_bytes() == (folder / "whole.h5").read_bytes()
    assert not list(folder.glob("*.parts")) + list(folder.glob("*.lock"))


def test_errors_are_said_once(folder):
    process = killed_jobs.job("nowhere/out.h5")
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.count("nowhere/out.h5 cannot be written") == 1
    assert "Traceback" not in err


def test_standard_input_is_not_shared(folder, capsys):
    code, _, err = run(capsys, "--log", "run.h5", "--test", "-", "--workers", 2)
    assert (code, "write the IDs to a file" in err) == (2, True)


def test_what_fails_on_another_host_ends_the_job():
    """A log that only one host does not see."""
    job = Solo(2)
    job._store.set("agreed/1/1", "on node7, process 1: there is no run log run.h5.")
    found = pytest.raises(InputError, match="on node7, process 1: there is no run log")
    with found, job.agreeing():
        pass


def test_others_that_do_nothing_are_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(group, "_PATIENCE", group._PATIENCE * 0)
    job = Solo()
    job.size = 2
    said = r"1 of the job's 2 processes are done, and none .*\n.*\n2. Start it with torchrun"
    with pytest.raises(InputError, match=said):
        job.ended(job.shows(lambda: None))
