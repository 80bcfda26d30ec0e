"""Steps that processes of a host hand on to each other: computed once, the same to the bit."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from torch.distributed import HashStore

from replay import Replay
from replay.processes import handing
from replay.processes.handing import Handing
from replay.processes.store import Store
from replay.progress import Progress
from replay.steps.trained_steps import _Passes
from tests.helpers.cases import CASES

SILENT = Progress(enabled=False)


class Squares:
    """Pieces of work; which of them were done is written down."""

    def __init__(self, done, wait=None):
        self.done, self.wait = done, wait

    def do(self, k):
        if self.wait is not None:
            self.wait(k)
        self.done.append(k)
        return torch.tensor([k * k])

    def is_ready(self, k):
        return k % 5 != 4

    def packed(self, found):
        return None if int(found) == 49 else {"found": [found]}

    def unpacked(self, packed):
        return packed["found"][0]


@pytest.fixture
def begun(tmp_path):
    """Return what begins a sequence of 20 pieces, which all that are begun share."""
    kept, all_begun = HashStore(), []

    def begin(work, others=1, room=1 << 20):
        all_begun.append(Handing(work, 20, Store(kept), "walk", others, room, tmp_path))
        return all_begun[-1]

    yield begin
    for one in all_begun:
        end(one)


def end(sequence):
    """Close its files at once."""
    for file, _ in sequence._unread.values():
        file.close()


def all_of(sequence):
    return [int(sequence.get(n)) for n in range(20)]


def to_the_end(sequence):
    found = all_of(sequence)
    sequence.close()
    assert not sequence._unread
    return found


@pytest.mark.parametrize("room", [1, 3000, 1 << 20])
@pytest.mark.parametrize("count", [2, 3])
def test_each_piece_is_done_once(begun, count, room):
    """But for one that stays with whoever has done it."""
    done = []
    with ThreadPoolExecutor() as pool:
        asked = [begun(Squares(done), count - 1, room) for _ in range(count)]
        found = list(pool.map(to_the_end, asked))
    assert found == [[k * k for k in range(20)]] * count
    assert sorted(done) == sorted([*range(20), *[7] * (count - 1)])


def test_who_waits_does_later_pieces(begun):
    """Not those that are not ready."""
    slow, fast, more = [], [], threading.Event()
    with ThreadPoolExecutor() as pool:
        one = begun(Squares(slow, lambda k: more.wait(20)))
        first = pool.submit(one.get, 0)
        while not one._store.has("walk/0") and one._front == 0:
            pass
        other = pool.submit(begun(Squares(fast)).get, 0)
        while len(fast) < 3:
            assert not other.done()
        more.set()
        assert (int(first.result()), int(other.result())) == (0, 0)
    assert (slow, fast) == ([0], [1, 2, 3])


def test_no_more_is_written_than_there_is_room_for(begun):
    one = begun(Squares([]), room=1)
    one.get(0)
    waits = threading.Thread(target=one.get, args=(1,), daemon=True)
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    all_of(begun(Squares([])))
    waits.join(20)
    assert not waits.is_alive()


@pytest.mark.parametrize("stays", [False, True])
def test_who_waits_goes_only_so_far_ahead(begun, monkeypatch, stays):
    """A process may have some thousand open files; what is in none takes memory."""
    monkeypatch.setattr(handing, "_FILES", 2)
    done = []
    one = begun(fast := Squares(done))
    if stays:
        monkeypatch.setattr(fast, "packed", lambda _: None)
    one._store.add("walk/0/begun", 1)  # by another, which is slow
    for _ in range(5):
        one._go_on(0)
    assert done == [1, 2]


def test_who_reads_nothing_is_not_waited_for_forever(begun, monkeypatch):
    monkeypatch.setattr(handing, "_PATIENCE", 0.05)
    done = []
    assert all_of(begun(Squares(done), room=1)) == [k * k for k in range(20)]
    assert done == [*range(20)]
    assert all_of(begun(Squares(done))) == [k * k for k in range(20)]  # others did not stay


@pytest.mark.parametrize("error", [OSError, RuntimeError, pickle.UnpicklingError])
def test_what_cannot_be_read_is_done_again(begun, monkeypatch, error):
    """The process that had it has ended, for example; or nothing could be written."""

    def fails(*_, **__):
        raise error

    done, one = [], begun(Squares([]))
    for n in range(20):
        one.get(n)
    monkeypatch.setattr(torch, "load", fails)
    assert all_of(begun(Squares(done))) == [k * k for k in range(20)]
    assert done == [*range(20)]
    assert one._held() == 0  # nobody is waited for


@pytest.mark.parametrize("where", [(torch, "save"), (handing.tempfile, "TemporaryFile")])
def test_a_full_disk_ends_nothing(begun, monkeypatch, where):
    def fails(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(*where, fails)
    done = []
    for _ in range(2):
        assert all_of(begun(Squares(done))) == [k * k for k in range(20)]
    assert done == [*range(20)] * 2


def test_another_file_is_not_taken_for_a_result(begun):
    """Numbers of open files are given again."""
    one = begun(Squares([]))
    one.get(0)
    one.get(1)
    (first, _), (second, _) = (one._unread[k] for k in (0, 1))
    first.seek(0)
    second.seek(0)
    second.truncate()
    second.write(first.read())
    second.flush()
    done = []
    assert [int(found) for found in map(begun(Squares(done)).get, range(2))] == [0, 1]
    assert done == [1]


RUNS = {case.name: case for case in CASES}
CHOSEN = (
    *("mlp-accumulation", "convolutional-groupnorm", "transformer-tied"),
    *("module-twice-and-by-hand", "batchnorm-dropout"),
)


def tensors(value):
    """Yield all tensors in an object, in one order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)
    elif is_dataclass(value):
        for one in fields(value):
            yield from tensors(getattr(value, one.name))


@pytest.mark.parametrize(
    ("name", "every", "memory"),
    [*((n, 1, 40_000) for n in CHOSEN), ("transformer-tied", 3, 40_000), (CHOSEN[0], 1, "2GiB")],
)
def test_steps_of_another_process_are_the_same(tmp_path, monkeypatch, name, every, memory):
    """A process goes ahead and computes all; the one that follows computes nothing."""
    case = replace(RUNS[name], options={**RUNS[name].options, "momentum": 0.9})
    task = case.trace(tmp_path / "run.h5", snapshot_every=every)
    passed, pass_over, names = [], _Passes.pass_over, iter("abcdef")
    monkeypatch.setattr(
        _Passes, "pass_over", lambda *asked: passed.append(asked[2]) or pass_over(*asked)
    )
    monkeypatch.setattr(Handing, "close", lambda one: None)

    def walked(begin):
        run = Replay(tmp_path / "run.h5", task, memory=memory, audit=1)._run
        with run.computing():
            tape = run.tape(range(len(run.log)), SILENT, allow_mismatch=False, begin=begin)
            return [(one, tape.trained_at(one)) for one in tape.walk()]

    kept, begun = Store(HashStore()), []

    def begin(work, visits):
        begun.append(Handing(work, len(visits), kept, next(names), 1, 1 << 30, tmp_path))
        return begun[-1]

    alone = walked(None)
    count = len(passed)
    first, names = walked(begin), iter("abcdef")
    assert len(passed) == 2 * count
    second = walked(begin)
    assert len(passed) == 2 * count
    for one in begun:
        end(one)
    for steps in zip(alone, first, second, strict=True):
        expected, *found = (list(tensors(step)) for step in steps)
        for others in found:
            assert all(map(torch.equal, others, expected))
            assert [t.stride() for t in others] == [t.stride() for t in expected]
