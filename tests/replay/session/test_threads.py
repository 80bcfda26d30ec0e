"""How many threads a replay computes with: what is faster, unless it is told."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from replay import Replay
from replay.session import bound_run
from replay.session.going_on import begin_together
from replay.session.threads import Threads
from tests.replay.session.test_surroundings import linear, plain, trace
from tracer.errors import InputError, TaskError

USED = []


def watched(model, batch):
    USED.append(torch.get_num_threads())
    return plain(model, batch)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    USED.clear()
    yield
    assert torch.get_num_threads() == 2  # as found
    torch.set_num_threads(1)


@pytest.mark.parametrize(("slow", "number"), [(2, 1), (1, 2)])
def test_the_faster_number_is_taken_once(two_threads, slow, number):
    threads, tried = Threads(), []

    def trial():
        with threads.scoring():
            tried.append(torch.get_num_threads())
            time.sleep(0.03 if tried[-1] == slow else 0.001)

    assert (threads.number, threads.why) == (2, "torch's number")
    threads.choose(trial, first=1)
    assert (threads.number, threads.why) == (number, "the faster of 1 and 2")
    assert tried[0] == 1
    assert tried.count(1) == tried.count(2) + 1
    count = len(tried)
    threads.choose(trial, first=1)
    assert len(tried) == count
    with threads.again():  # steps that are taken again have the program's
        assert torch.get_num_threads() == 2


def test_an_error_is_left_to_the_work(two_threads):
    def trial():
        raise TaskError("no")

    threads = Threads()
    threads.choose(trial, first=1)
    assert (threads.number, threads.why) == (2, "torch's number")


@pytest.fixture
def timed(two_threads, monkeypatch, tmp_path):
    """A run whose first step is faster with one thread."""
    monkeypatch.setattr(bound_run, "_MUCH", 1)
    true = Threads._timed

    def faked(threads, trial, numbers):
        assert set(true(threads, trial, numbers)) == {1, 2}
        return {1: [1.0], 2: [2.0]}

    monkeypatch.setattr(Threads, "_timed", faked)
    return tmp_path / "run.h5", trace(tmp_path / "run.h5", watched)


ASKED = {
    "influence": lambda run: run.influence([0, 1], progress=False),
    "tracincp": lambda run: run.influence([0, 1], methods="tracincp", progress=False),
    "self": lambda run: run.self_influence(progress=False),
}


@pytest.mark.parametrize("kind", ASKED)
def test_results_are_those_of_the_number_that_was_chosen(timed, kind):
    log, task = timed
    task = replace(task, train=task.train * 12)  # examples enough for a look at a checkpoint
    found, expected = (ASKED[kind](Replay(log, task, **how)) for how in ({}, {"threads": 1}))
    assert found.attributes["threads"] == expected.attributes["threads"] == 1
    assert found.attributes["threads_chosen"] == "the faster of 1 and 2"
    assert expected.attributes["threads_chosen"] == "as asked for"
    assert {*expected.scores} == {*found.scores}
    for name, scores in expected.scores.items():
        assert np.array_equal(found.scores[name], scores, equal_nan=True)


def test_what_is_computed_with_how_many(timed):
    run = Replay(*timed)
    USED.clear()
    assert run.estimate([0, 1]).threads == 1
    assert {*USED} == {1, 2}  # both are tried
    for job, expected in (
        (lambda: run.influence([0], progress=False), 1),
        (lambda: run.drops([0], progress=False), 1),
        (lambda: run.verify(progress=False), 2),
        (lambda: run.leave_one_out([0], [3], progress=False), 2),  # the run's bits, again
    ):
        USED.clear()
        found = job()
        assert {*USED} == {expected}
    assert found.attributes["threads"] == 2
    assert Replay(*timed, match_environment=True).estimate([0]).threads == 2


def test_little_work_and_steps_taken_again_are_not_timed(two_threads, tmp_path):
    task = trace(tmp_path / "run.h5", watched)
    assert Replay(tmp_path / "run.h5", task).estimate([0]).threads == 2
    assert 1 not in USED


def test_finished_runs_keep_their_number(two_threads, tmp_path, monkeypatch):
    task, out = trace(tmp_path / "run.h5", watched), tmp_path / "out.h5"
    how = {"out": out, "progress": False}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("replay.session.counterfactual._result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Replay(tmp_path / "run.h5", task, threads=1).leave_one_out([0], [0, 1], **how)
    monkeypatch.undo()
    with pytest.raises(InputError, match="its number of threads is not the same"):
        Replay(tmp_path / "run.h5", task, threads=2).leave_one_out([0], [0, 1], **how)
    USED.clear()
    found = Replay(tmp_path / "run.h5", task).leave_one_out([0], [0, 1], **how)
    assert {*USED} == {1}
    assert found.attributes["threads"] == 1


class Told(dict):
    """Processes of a job that share a dictionary."""

    tell, told, leads, agreeing = dict.__setitem__, dict.__getitem__, True, nullcontext


def test_all_processes_of_a_job_take_the_number_of_the_one_that_leads(two_threads, tmp_path):
    """It is not timed: bits would depend on what else the machine does."""
    task = trace(tmp_path / "run.h5", watched)
    leader, other = (Replay(tmp_path / "run.h5", task)._run for _ in range(2))
    group = Told()
    begin_together(leader, group, tmp_path / "out.h5")
    torch.set_num_threads(1)
    group.leads = False
    begin_together(other, group, tmp_path / "out.h5")
    torch.set_num_threads(2)
    said = [(run.computing.threads.number, run.computing.threads.why) for run in (leader, other)]
    assert said == [(2, "torch's number"), (2, "as the job began")]


def test_arguments(tmp_path):
    task = trace(tmp_path / "run.h5", plain, linear)
    for wrong in (0, 1.5, "2", True):
        with pytest.raises(InputError, match="threads must be a whole number from 1 on, found"):
            Replay(tmp_path / "run.h5", task, threads=wrong)
    with pytest.raises(InputError, match="threads must be at most 1024, found 1025"):
        Replay(tmp_path / "run.h5", task, threads=1025)
    with pytest.raises(InputError, match="leave one of the two out"):
        Replay(tmp_path / "run.h5", task, threads=1, match_environment=True)
