"""How often steps are replayed where memory does not hold a window, and what is said of it."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch

from replay import Replay
from replay.steps.replayer import Replayer
from replay.steps.schedule import Capacity, capacity_of, estimate, segment_starts
from replay.steps.trained_steps import TrainedSteps
from tests.helpers.rules import BY_NAME, trace


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("states", [2, 3, 7, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 40, 999])
def test_segments_cover_a_window(count, states, keeps):
    capacity = Capacity(states, max(1, states // 3) if keeps else states, keeps)
    starts = segment_starts(10, 10 + count, capacity)
    assert starts[0] == 10
    assert len(starts) <= states
    assert (len(starts) == 1) == (count <= capacity.steps)
    lengths = [b - a for a, b in zip(starts, [*starts[1:], 10 + count], strict=True)]
    assert min(lengths) > 0
    assert max(lengths) < count or len(starts) == 1
    each = 8 + 3 * keeps
    held = estimate(count, 8, 3, capacity).nbytes
    assert held == each * min(count, capacity.steps) + 8 * len(starts)


@pytest.mark.parametrize(
    ("count", "capacity", "times"),
    [
        (4, Capacity(4, 4, False), 4),
        (6, Capacity(3, 3, False), 3 + 6),  # to the middle, then both halves
        (7, Capacity(2, 2, False), 4 + (2 + 4) + (2 + 3)),  # 4 and 3, of which 2 and 2, 2 and 1
        (4, Capacity(4, 4, True), 0),
        (300, Capacity(36, 33, True), 270),  # once, but for the last segment
        (7, Capacity(2, 2, True), 4 + 2 + 2),
    ],
    ids=str,
)
def test_replays_by_hand(count, capacity, times):
    assert estimate(count, 1, 1, capacity).replays == times


def test_capacity():
    assert capacity_of(1000, 50, math.inf) == Capacity(10, 10, False)
    assert capacity_of(1000, 50, 75) == Capacity(10, 4, True)
    assert capacity_of(1000, 50, 460) == Capacity(10, 10, False)  # not even one with its examples'
    assert capacity_of(10, 50, 0) == Capacity(2, 2, False)


@pytest.fixture
def counted(monkeypatch):
    """Count replays without examples' gradients."""
    seen = []
    replay = Replayer.replay

    def spy(self, t, optimizer, *, keep):
        found = replay(self, t, optimizer, keep=keep)
        if not keep:
            seen.append(found[0].nbytes)
        return found

    monkeypatch.setattr(Replayer, "replay", spy)
    return seen


@pytest.mark.parametrize("memory", [12_000, 300_000, 2_000_000, "2GiB"])
@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
def test_the_estimate_is_what_happens(tmp_path, counted, name, memory):
    run = trace(tmp_path / "run.h5", BY_NAME[name], steps=17)
    replay = Replay(run.path, task=run.task, memory=memory)
    window = range(17)
    with replay._run.computing():
        expected = replay._run.tape(window, Silent(), allow_mismatch=False).estimate()
        walked = replay._run.tape(window, Silent(), allow_mismatch=False)
        counted.clear()
        steps = list(walked.walk())
    assert expected.replays == len(counted)
    if name == "sgd":
        assert expected.nbytes == 0
    elif memory == "2GiB":
        held = sum(step.nbytes + step.trained.nbytes for step in steps)
        assert expected.nbytes == pytest.approx(held, rel=0.05)
    else:
        with replay._run.computing():
            each = walked._measured(walked._before_window())
        capacity = capacity_of(replay._run.budget // 4, *each)
        assert capacity.steps < 17
        assert expected == estimate(17, *each, capacity)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_small_steps_are_more_than_their_numbers(tmp_path, name):
    """Of many steps of a small model, objects are most of what is held."""
    run = trace(tmp_path / "run.h5", BY_NAME[name], steps=17)
    replay = Replay(run.path, task=run.task)
    with replay._run.computing():
        steps = list(replay._run.tape(range(17), Silent(), allow_mismatch=False).walk())
    names = {id(name) for step in steps for name in step.filters}  # shared, like small numbers
    seen = set(names)
    held = sum(_size(step, seen) for step in steps)
    counted = sum(step.nbytes + step.trained.nbytes for step in steps)
    assert 0.9 * held <= counted <= 2 * held
    batches = [batch for step in steps for batch in step.trained.batches]
    examples = sum(_size((batch.losses, batch.forms), set(names)) for batch in batches)
    assert 0.9 * examples <= sum(step.trained.nbytes for step in steps) <= 2 * examples


def _size(value, seen):
    """Return the bytes of an object and of what it holds that nothing seen before does."""
    if id(value) in seen or value is None or isinstance(value, (bool, str, type)):
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return 600 + value.nbytes  # measured: torch takes 540 to 600 besides the elements
    inner = []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = list(value)
    elif dataclasses.is_dataclass(value):
        inner = list(vars(value).values())
    return sys.getsizeof(value) + sum(_size(one, seen) for one in inner)


class Silent:
    """Shows nothing."""

    def task(self, description, total):
        return lambda: None


def test_estimates_see_what_is_replayed_again(tmp_path, monkeypatch):
    """Time is counted in replays and passes instead of seconds."""
    run = trace(tmp_path / "run.h5", BY_NAME["adamw"], steps=40)
    ticks = [0.0]
    replayed = TrainedSteps.of

    def spy(self, t, **how):
        ticks[0] += 1.0
        return replayed(self, t, **how)

    monkeypatch.setattr(TrainedSteps, "of", spy)
    monkeypatch.setattr("time.perf_counter", lambda: ticks[0])
    for memory in ("2GiB", 2_000_000):
        replay = Replay(run.path, task=run.task, memory=memory)
        expected = replay.estimate([0, 1], methods=("tracin",))
        began = ticks[0]
        replay.influence([0, 1], methods=("tracin",), progress=False)
        assert expected.seconds == pytest.approx(ticks[0] - began, rel=0.1), memory
