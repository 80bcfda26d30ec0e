"""How often steps are recorded where memory does not hold a window, and what is said of it."""

from __future__ import annotations

import pytest
from rules import RULES, trace

from replay import Replay, tape
from replay.estimate import estimate
from replay.segments import cuts, outlook, recordings, room_for

BY_NAME = {rule.name: rule for rule in RULES}


@pytest.mark.parametrize("room", [2, 3, 7, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 40, 999])
def test_pieces_cover_a_window(count, room):
    starts = cuts(10, 10 + count, room)
    assert starts[0] == 10
    assert len(starts) <= room
    assert (len(starts) == 1) == (count <= room)
    lengths = [b - a for a, b in zip(starts, [*starts[1:], 10 + count], strict=True)]
    assert min(lengths) > 0
    assert max(lengths) < count or len(starts) == 1
    assert recordings(count, room) >= count
    assert outlook(count, 8, room).nbytes == 8 * (min(count, room) + len(starts))


def test_recordings_by_hand():
    assert recordings(4, 4) == 4
    assert recordings(6, 3) == 3 + 6  # to the middle, then both halves
    assert recordings(7, 2) == 4 + (2 + 4) + (2 + 3)  # 4 and 3, of which 2 and 2, 2 and 1


@pytest.fixture
def counted(monkeypatch):
    """Count recordings without examples' gradients."""
    seen = []
    record = tape.Tape._record

    def spy(self, t, memory, *, keep):
        found = record(self, t, memory, keep=keep)
        if not keep:
            seen.append(found[0].nbytes)
        return found

    monkeypatch.setattr(tape.Tape, "_record", spy)
    return seen


@pytest.mark.parametrize("memory", [12_000, 30_000, "2GiB"])
@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
def test_outlook_is_what_happens(tmp_path, counted, name, memory):
    run = trace(tmp_path / "run.h5", BY_NAME[name], steps=17)
    replay = Replay(run.path, task=run.task, memory=memory)
    window = range(17)
    with replay._computing():
        outlooks = replay._tape(window, lenient=False, shown=Silent()).outlook()
        walked = replay._tape(window, lenient=False, shown=Silent())
        counted.clear()
        steps = list(walked.walk())
    assert outlooks.recordings == len(counted)
    if name == "sgd":
        assert outlooks.nbytes == 0
    elif memory == "2GiB":
        held = sum(step.nbytes + step.trained.nbytes for step in steps)
        assert outlooks.nbytes == pytest.approx(held, rel=0.05)
    else:
        room = room_for(replay._budget // 4, counted[0])
        assert room < 17
        assert outlooks.nbytes > room * counted[0] * 0.9


class Silent:
    """Shows nothing."""

    def task(self, description, total):
        return lambda: None


def test_estimates_see_what_is_recorded_again(tmp_path, monkeypatch):
    """Time is counted in recordings and passes instead of seconds."""
    run = trace(tmp_path / "run.h5", BY_NAME["adamw"], steps=40)
    ticks = [0.0]
    replayed = tape.Tape._run

    def spy(self, how, now):
        ticks[0] += 1.0
        return replayed(self, how, now)

    monkeypatch.setattr(tape.Tape, "_run", spy)
    monkeypatch.setattr("time.perf_counter", lambda: ticks[0])
    for memory in ("2GiB", 60_000):
        replay = Replay(run.path, task=run.task, memory=memory)
        expected = estimate(replay, [0, 1], methods=("tracin",))
        began = ticks[0]
        replay.influence([0, 1], methods=("tracin",), progress=False)
        assert expected.seconds == pytest.approx(ticks[0] - began, rel=0.1), memory
