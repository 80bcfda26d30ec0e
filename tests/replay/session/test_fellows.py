"""Which processes of a host walk together, and when they keep their states."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
from torch.distributed import HashStore

from replay.processes.group import Group
from replay.processes.store import Store
from replay.results.parts import Parts
from replay.session import fellows
from replay.session.chunk_walks import ChunkWalks
from replay.session.fellows import Fellows


class Member(Group):
    """A process of a host."""

    def __init__(self, rank, kept):
        self.rank, self.size, self._times = rank, 3, 0
        self._store = Store(kept)


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Three processes of one host."""
    kept = HashStore()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(Member, "neighbours", range(3))
    return [Fellows(Member(rank, kept), 1 << 30, tmp_path) for rank in range(3)]


WHOLE, PART = (range(9), False), (range(4), False)


@pytest.mark.parametrize(
    ("own", "common"),
    [
        ([[WHOLE], [WHOLE], [WHOLE]], range(9)),
        ([[PART], [PART]], range(4)),  # the third has no chunk, and helps
        ([[WHOLE], [], [WHOLE]], range(9)),  # the second is done, and helps
        ([[WHOLE], [PART], [WHOLE]], None),  # a job that was killed between their states
        ([[WHOLE, PART], [WHOLE, PART]], None),
        ([[(range(9), True)], [(range(9), True)]], None),  # all steps are in memory
        ([[WHOLE], [(range(9), True)]], None),
        ([[], []], None),
    ],
)
def test_who_walks_through_the_same_steps_walks_together(three, own, common):
    ranks = range(len(own))
    for rank in ranks:  # each waits for what the others tell
        known = [[w.start, w.stop, kept] for w, kept in own[rank]]
        three[rank]._group.tell(f"walk 0 of {rank}", known)
    met = [one.meet(0, own[k] if k < len(own) else [], ranks) for k, one in enumerate(three)]
    assert met == [common] * 3
    begun = [one.begin(None, [(0, True)]) for one in three]
    assert [one is not None for one in begun] == [common is not None] * 3


def test_other_steps_are_another_sequence(three):
    for one in three:
        one._group.tell(f"walk 0 of {one._group.rank}", [[0, 9, False]])
    names = set()
    for one, visits in zip(three, ([(0, True)], [(0, True)], [(1, True)]), strict=True):
        one.meet(0, [WHOLE], range(3))
        names.add(one.begin(None, visits)._name)
    assert len(names) == 2


def test_a_process_of_a_host_of_its_own_walks_alone(three, monkeypatch):
    monkeypatch.setattr(Member, "neighbours", range(1))
    assert three[0].meet(0, [WHOLE], [0]) is None
    assert three[0].begin(None, [(0, True)]) is None


def test_without_a_place_where_others_find_files_each_walks_alone(three, monkeypatch, tmp_path):
    monkeypatch.setattr(fellows, "OPEN", tmp_path / "none")
    for one in three:
        one._group.tell(f"walk 0 of {one._group.rank}", [[0, 9, False]])
    assert [one.meet(0, [WHOLE], range(3)) for one in three] == [None] * 3


def test_neighbours_are_what_torchrun_says(monkeypatch):
    member = Member(5, HashStore())
    assert member.neighbours == range(5, 6)
    for name, value in (("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert member.neighbours == range(4, 8)


def test_states_are_kept_after_the_same_steps(three, monkeypatch):
    """By those, too, that are some steps behind."""
    clock = iter(range(10_000))
    monkeypatch.setattr(fellows.time, "monotonic", lambda: next(clock) / 4)
    for one in three:
        one._group.tell(f"walk 0 of {one._group.rank}", [[0, 9, False]])
    for one in three:
        one.meet(0, [WHOLE], range(3))
    kept = [[] for _ in three]
    for k in range(400):
        for rank, one in enumerate(three):
            if k % (rank + 2) and one.keep():  # not as fast as each other
                kept[rank].append(one._steps)
    shortest = min(map(len, kept))
    assert shortest > 1
    assert kept[0][:shortest] == kept[1][:shortest] == kept[2][:shortest]
    assert len({b - a for some in kept for a, b in pairwise(some)}) == 1


@pytest.mark.parametrize(("kept", "made"), [(False, 2), (True, 1)])
def test_all_begin_a_walk_together_with_a_new_tape(three, tmp_path, monkeypatch, kept, made):
    """Who helps in the second walk has no other: a tape that is used again asks for less."""
    group, tape = three[0]._group, MagicMock(plain=False, is_kept=kept)
    run = SimpleNamespace(budget=1, tape=Mock(return_value=tape), computing=MagicMock())
    question = SimpleNamespace(steps=range(9), tape={})
    monkeypatch.setattr(ChunkWalks, "_begun", MagicMock())
    with Parts(tmp_path / "run.parts", {}) as parts:
        walks = ChunkWalks(run, question, group, parts)
        for number in range(2):
            chunk = slice(number, number + 1), None
            walks.together(number, [[chunk], [], []], Mock())
    assert run.tape.call_count == made
