"""Commands on several processes: one result, one voice, and nothing lost when a process dies."""

from __future__ import annotations

import copy
import os
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from torch.distributed import DistNetworkError, HashStore

from replay import Influence, Replay, load_task
from replay.command import importing, program
from replay.command.importing import say_interrupted
from replay.processes import launch, store
from replay.processes.alone import Alone
from replay.processes.launch import BEGUN
from replay.processes.meeting import met
from replay.processes.store import Store
from replay.session.together import influence_together
from tests.helpers import killed_jobs
from tests.helpers.command import run, started
from tests.helpers.jobs import Solo
from tracer.errors import InputError, InputWarning, TaskError

INSTALLED = "import sys; del sys.path[0]; from replay.command.entry import main; main()"
OMP = "OMP_NUM_THREADS"
JOB = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_a_killed_worker_loses_nothing(folder):
    """Torchrun starts its processes again: it is given the command once."""
    killed_jobs.begun(folder, "AdamW")
    begin = killed_jobs.by_torchrun
    assert killed_jobs.disturbed(folder, "killed.h5", random.Random(2), 1, begin) == 1
    assert not list(folder.glob("*.parts")) + list(folder.glob("*.lock"))
    found, task = Influence.load("killed.h5"), load_task("work.py:task", trusted=True)
    asked = {"methods": ("tracin", "tracincp")}
    whole = influence_together(
        Replay("run.h5", task), found.test_ids, Solo(), folder / "whole.h5", **asked
    )
    for name, scores in whole.scores.items():
        assert np.array_equal(found.scores[name], scores)


@pytest.mark.parametrize(
    ("ends", "code", "times"), [([-9, -9, 0], 0, 3), ([-9, 2], 2, 2), ([-9] * 5, 137, 4)]
)
def test_workers_start_again_when_one_is_killed(monkeypatch, ends, code, times):
    begun = Mock(side_effect=ends)
    monkeypatch.setattr(launch, "_launched", begun)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(BEGUN, "2")  # so that it is put back, whatever is set meanwhile
    monkeypatch.delenv(BEGUN)
    assert (launch.on_several(2, ["verify", "run.h5"]), begun.call_count) == (code, times)


@pytest.mark.parametrize(
    ("told", "asked", "threads", "said"),
    [
        (None, [], "1", "1 of 8 processors will work: each process of a job has one thread. --thr"),
        (None, ["--threads", 8], "1", ""),
        ("3", [], "3", ""),
    ],
)
def test_threads_do_not_depend_on_how_many_processes_there_are(
    folder, capsys, monkeypatch, told, asked, threads, said
):
    """A job of one process is one: it has the bits of others."""
    found = []
    monkeypatch.setattr(launch, "_launched", lambda *_: found.append(os.environ[OMP]) or 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    monkeypatch.setenv(BEGUN, "")
    monkeypatch.setenv(OMP, told or "")
    if told is None:
        monkeypatch.delenv(OMP)
    code, _, err = run(capsys, "--log", "run.h5", "--test", "all", "--workers", 1, *asked)
    assert (code, found, said in err, bool(err)) == (0, [threads], True, bool(said))
    for name, value in (JOB | {"RANK": "0", "WORLD_SIZE": "1"}).items():  # begun by torchrun
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(OMP, told or "")
    if told is None:
        monkeypatch.delenv(OMP)
    run(capsys, "--version")
    assert os.environ[OMP] == threads


def test_errors_are_said_once(folder):
    """A user's file of the name of a module of ours is not it, where the program is installed."""
    (folder / "replay.py").write_text("raise SystemExit(7)")
    (folder / "run.influence.h5").write_text("an earlier result, which is looked at last")
    asked = ["influence", "run.h5", "--test-id", "a3", "--workers", "2"]
    process = started(["-c", INSTALLED, *asked])
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.count("--test-id 'a3': the test set has no such example") == 1
    assert "run.influence.h5" not in err
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


def test_jobs_are_done_once_and_told_to_all():
    """What one process finds is everybody's error, as it was there."""
    kept, done = HashStore(), []
    job, other = Solo(2), Solo(2)
    job._store = other._store = Store(kept)

    def work(k):
        done.append(k)
        if k == 2:
            raise TaskError("it is random.\n  1. Draw nothing.")
        return {"same": k == 1}

    def asked(one):
        found = one.divided("look", [partial(work, k) for k in range(3)])
        assert [next(found), next(found)] == [{"same": False}, {"same": True}]
        with pytest.raises(TaskError, match=r"^it is random.\n  1. Draw nothing.$"):
            next(found)

    asked(job)
    asked(other)
    assert done == [0, 1, 2]
    assert list(Alone().divided("look", [partial(work, 1)])) == [{"same": True}]


def test_one_bar_shows_what_all_have_done():
    shown, kept = [], HashStore()
    leader, other = Solo(2), Solo(2)
    leader._store = other._store = Store(kept)
    other.rank = 1
    ours, theirs = (one.shows(lambda: shown.append(1)) for one in (leader, other))
    for _ in range(3):
        theirs()
    assert not shown
    ours()
    assert len(shown) == 4
    theirs()
    ours(0)  # it waits, and has done nothing more itself
    assert len(shown) == 5


def test_others_that_give_no_sign_are_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE", store._PATIENCE * 0)
    job = Solo()
    job.size = 2
    said = r"none of the job's other processes gave a sign .*\n.*\n2. Start it with torchrun"
    with pytest.raises(InputError, match=said):
        job.ended(job.shows(lambda: None))
    with pytest.raises(InputError, match=said):
        job.told("what nobody says")


def test_long_work_of_others_is_waited_for(monkeypatch):
    """Each gives signs of life while it works; one's own are none of others."""
    monkeypatch.setattr(store, "_PATIENCE", timedelta(seconds=0.5))
    monkeypatch.setattr(store, "_BEAT", 0.1)
    kept = HashStore()
    other, own = Store(kept), Store(kept)
    stopped = threading.Timer(1.0, other.set, ["told/late", "7"])
    for beating in (other, own):
        beating.begin()
    stopped.start()
    assert own.get("told/late") == "7"
    other.end()
    with pytest.raises(InputError, match="no sign|gave a sign"):
        own.get("told/never")
    own.end()


def test_what_dead_processes_claimed_is_free_again():
    """Torchrun keeps a store through its restarts; one of the first start never came so far."""
    kept = HashStore()
    kept.set("hello/2", "a word of a process that was killed before it was answered")
    for ranks in ((0, 1), (0, 1, 2), (2, 0, 1)):
        with ThreadPoolExecutor() as pool:
            begun = [pool.submit(met, kept, rank, len(ranks), lambda: None) for rank in ranks]
            names = {one.result() for one in begun}
        assert len(names) == 1
        assert Store(kept, names.pop()).add("claimed/steps from 0", 1) == 1


def test_a_launcher_that_is_gone_is_said(monkeypatch):
    class Gone:
        def add(self, *_):
            raise DistNetworkError("Failed to recv, got 0 bytes.\nmore")

    said = r"started this job is gone, .* \(Failed to recv, got 0 bytes.\).\n1. Start the same"
    with pytest.raises(InputError, match=said):
        Store(Gone()).add("alive", 1)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (JOB, 0),
        (JOB | {"RANK": "0"}, 1),
        ({"RANK": "0", BEGUN: "2"}, 0),
        ({BEGUN: "2"}, 1),
        ({}, 1),
    ],
)
def test_one_of_a_job_says_that_it_was_interrupted(monkeypatch, capsys, told, says):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    say_interrupted()
    assert capsys.readouterr().err.count("Interrupted") == says


@pytest.mark.parametrize("own", [("--bogus",), ("--log", "none.h5")])
def test_the_first_of_a_job_that_fails_says_why(capsys, monkeypatch, folder, own):
    """The others find the same."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    job = Solo()
    monkeypatch.setattr(program, "here", lambda: job)
    asked = ("--test", "all", *own)
    said = [run(capsys, *asked) for _ in range(2)]
    assert [(code, bool(err)) for code, _, err in said] == [(2, True), (2, False)]


def test_what_others_warn_of_is_shown_once(folder, capsys, monkeypatch):
    """With how many said it, unless the first process did, too."""
    job = Solo(4)
    others = [copy.copy(job) for _ in range(3)]

    def inspects(**_):
        for text in said[now]:
            warnings.warn(text, InputWarning, stacklevel=1)

    monkeypatch.setattr(program, "here", lambda: now)
    monkeypatch.setattr(importing, "import_module", lambda _: SimpleNamespace(inspect=inspects))
    shown = []
    said = dict(zip([*others, job], ["BC", "BD", "BA", "AA"], strict=True))
    for now in said:
        now.rank = 0 if now is job else 1
        shown.append(run(capsys, "inspect", "run.h5")[2].splitlines())
    only = [f"Note: ({n} of 4 processes) {text}" for n, text in ((3, "B"), (1, "C"), (1, "D"))]
    assert shown == [[], [], [], ["Note: A", *only]]


def test_one_of_a_job_estimates(folder, capsys, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    assert run(capsys, "--log", "run.h5", "--test", "all", "--dry-run") == (0, "", "")
