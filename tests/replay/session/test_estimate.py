"""What a job of several processes is estimated to take: counted, not timed."""

from __future__ import annotations

import os
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from replay import Replay
from replay.command.jobs.dry_run import from_the_start
from replay.session import estimate, together
from replay.session.crew import Crew, Trials
from replay.session.estimate import Cost
from replay.session.together import estimated_together, influence_together
from replay.steps.trained_steps import TrainedSteps
from tests.helpers.jobs import Solo
from tests.helpers.rules import BY_NAME, trace

STEPS = 40


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Return what traces a run of a rule, once."""
    folder = tmp_path_factory.mktemp("estimates")
    return cache(lambda rule: trace(folder / f"{rule}.h5", BY_NAME[rule], steps=STEPS))


@pytest.fixture
def with_cores(monkeypatch):
    """Say how many processors there are."""

    def say(count):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(count)}, raising=False)

    return say


@pytest.fixture
def ticks(monkeypatch):
    """Let the clock count how often a step's gradients are asked for, instead of seconds."""
    now, asked = [0.0], TrainedSteps.of

    def counted(self, t, **how):
        now[0] += 1.0
        return asked(self, t, **how)

    monkeypatch.setattr(TrainedSteps, "of", counted)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("cores", "threads", "workers", "pieces", "taken"),
    [
        (2, 1, 1, 8, 8),
        (2, 1, 2, 8, 4),
        (4, 1, 3, 8, 3),  # 3, 3 and 2 pieces
        (2, 1, 3, 8, 4),  # who has two is done after three, the others after one more
        (1, 1, 2, 8, 8),
        (2, 1, 4, 8, 4),
        (8, 4, 4, 8, 4),  # two at once
        (2, 8, 2, 8, 8),
        (16, 1, 16, 8, 1),  # eight have nothing to do
        (8, 1, 4, 1, 1),
    ],
)
def test_who_does_what_when(traced, with_cores, cores, threads, workers, pieces, taken):
    with_cores(cores)
    run = traced("sgd")
    crew = Crew(Replay(run.path, task=run.task, threads=threads)._run, workers)
    assert pieces * crew.share(pieces) == pytest.approx(taken)


def test_what_trials_say(traced, with_cores, monkeypatch):
    """Work and adding up of the sizes 1, 1 again and 5; the first compares for three seconds."""
    run = traced("sgd")
    crew = Crew(Replay(run.path, task=run.task, threads=1)._run, 2)
    answers = iter([(13, 9, 1), (4, 1, 1), (12, 3, 4)])

    def answered(self, count):
        self._run.chunks.took["test"] += 3 if count == 1 else 0
        return next(answers)

    monkeypatch.setattr(Crew, "_answered", answered)
    assert crew.tried(lambda count: count, 5) == (trials := Trials(6, 3, 2, 2, 0.5, 0.5, 4))
    with_cores(2)
    assert (crew.own(trials.base), crew.begins(trials)) == (2, 6 + 2)  # two of three looks
    with_cores(1)
    assert (crew.own(trials.base), crew.begins(trials)) == (4, 12 + 3)


@pytest.mark.parametrize(("cores", "seconds"), [(1, 2 * 110), (2, 110)])
def test_each_process_has_a_base(traced, ticks, with_cores, monkeypatch, cores, seconds):
    with_cores(cores)
    monkeypatch.setattr(Crew, "tried", lambda *_: Trials(10, 0, 100, 0, 1, 0.5, 1))
    run = traced("sgd")
    found = estimated_together(Replay(run.path, run.task), [0], 2, methods="tracin")
    assert found.seconds == pytest.approx(seconds + 1 + STEPS / 2)


@pytest.mark.parametrize(
    ("rule", "audit", "tests", "times", "cores"),
    [
        ("sgd", 100, 2, 1, 2),
        ("adamw", 100, 2, 2, 2),  # stacks are not handed on
        ("adamw", 10, 2, 1, 1),
        ("adamw", 10, 2, 1, 2),
        ("adamw", 10, 1, 1, 2),  # one process has nothing but the other's training side
    ],
)
def test_a_job_is_all_that_its_processes_do(
    traced, ticks, with_cores, rule, audit, tests, times, cores
):
    """Two take each step's gradients ``times`` times, both at once if there are the cores."""
    with_cores(cores)
    run = traced(rule)
    replay = Replay(run.path, run.task, audit=audit)
    found = estimated_together(replay, range(tests), 2, methods="tracin")
    assert found.seconds == pytest.approx(STEPS * times / cores, rel=0.15)


@pytest.mark.parametrize(("audit", "times"), [(100, 2), (10, 1)])
def test_a_job_replays_again_what_memory_does_not_hold(
    tmp_path, traced, ticks, with_cores, audit, times
):
    """Played here, neither of two walks finds what the other has found."""
    with_cores(2)
    run = traced("adamw")
    asked = {"methods": "tracin"}
    replay = Replay(run.path, run.task, memory=2_000_000, audit=audit)
    expected = estimated_together(replay, [0, 1], 2, **asked).seconds
    began = ticks[0]
    influence_together(replay, [0, 1], Solo(2), tmp_path / "out.h5", **asked)
    both = ticks[0] - began
    assert both > 3 * STEPS
    assert expected == pytest.approx(times * both / 4, rel=0.1)


@pytest.mark.parametrize(
    ("plain", "dense", "known", "start"),
    [
        (True, True, [], 58),
        (True, False, [0, 30, 50, 70], 50),
        (False, True, [0, 58, 59], 58),
        (False, True, [0], 20),
    ],
)
def test_steps_in_the_middle_are_tried_if_they_begin_at_a_state(plain, dense, known, start):
    log = SimpleNamespace(is_dense=dense, states=lambda: known)
    found = estimate._from_the_middle(SimpleNamespace(log=log), range(20, 101), 5, plain=plain)
    assert found == range(start, start + 5)


def test_choosing_threads_is_counted(traced, ticks, monkeypatch):
    def settle(run, question):
        ticks[0] += 1000

    monkeypatch.setattr(estimate, "settle", settle)
    run = traced("sgd")
    assert 1000 < Replay(run.path, run.task).estimate([0], methods="tracin").seconds < 1050


@pytest.mark.parametrize(("told", "workers", "number"), [("", 2, 1), ("3", 2, 3), ("", 1, 5)])
def test_a_job_is_tried_with_the_threads_it_will_have(
    traced, monkeypatch, with_cores, told, workers, number
):
    with_cores(8)
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(together, "estimated", lambda *_: torch.get_num_threads())
    run = traced("sgd")
    torch.set_num_threads(5)
    try:
        assert estimated_together(Replay(run.path, run.task), [0], workers) == number
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("workers", "cores", "starting"), [(1, 2, 3), (2, 2, 6), (4, 2, 9)])
def test_a_job_starts_what_starts_it(with_cores, workers, cores, starting):
    with_cores(cores)
    cost = Cost(10.0, 1).with_start(3.0, workers)
    assert (cost.seconds, cost.starting) == (10 + starting, starting)


@pytest.mark.parametrize(("took", "starting"), [(5, 6), (1, 3)])  # of 2.5 s of processor time
def test_a_start_is_slowed_down_by_others_as_the_estimate_is(monkeypatch, took, starting):
    for name, times in (("perf_counter", (100, 100 + took)), ("process_time", (3, 5.5))):
        monkeypatch.setattr(f"time.{name}", partial(next, iter(times)))
    assert from_the_start(lambda: Cost(10.0, 1), 1).starting == starting


@pytest.mark.parametrize(
    ("seconds", "starting", "text"),
    [
        (0.123, 0, "0.12 s"),
        (75, 2.34, "75 s, 2.3 s of it to start"),
        (1500, 0, "25 min"),
        (2e4, 3, "5.6 h, 3 s of it to start"),
    ],
)
def test_costs_in_words(seconds, starting, text):
    said = str(Cost(seconds, 1_500_000_000, starting=starting))
    assert said == f"{text}, peak memory 1.50 GB"
