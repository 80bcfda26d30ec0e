"""Tables that memory does not hold: filled, written and read where they are on the disk."""

from __future__ import annotations

import errno
import sys

import numpy as np
import pytest

from replay import Influence
from replay.results import file, room
from replay.results.room import Room
from replay.session import together
from tests.helpers.command import TASK, run, trace
from tests.helpers.training import script
from tracer.errors import InputError

ASKED = ("influence", "run.h5", "--test", "all", "--json", "--out")


def test_the_result_is_the_same_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder := tmp_path)
    (folder / "work.py").write_text(TASK)
    trace(folder / "run.h5", "work.py:task")
    made, zeros = [], Room.zeros
    code, shown, _ = run(capsys, *ASKED, "memory.h5")
    given = []
    monkeypatch.setattr(together, "Room", lambda size, at: given.append(size) or Room(0, at))
    monkeypatch.setattr(Room, "zeros", lambda *asked: made.append(zeros(*asked)) or made[-1])
    assert (code, run(capsys, *ASKED, "disk.h5")[:2]) == (0, (0, shown))
    assert made
    assert given == [(2 << 30) // 4]  # what fills them needs the rest
    assert all(isinstance(table, np.memmap) for table in made)
    assert (folder / "disk.h5").read_bytes() == (folder / "memory.h5").read_bytes()

    found = Influence.load("memory.h5")
    monkeypatch.setattr(file, "_MAPPED", 0)
    mapped = Influence.load("memory.h5")
    assert all(isinstance(table, np.memmap) for table in mapped.scores.values())
    for z in found.test_ids:
        (ids, scores), (others, theirs) = mapped.top(z), found.top(z)
        assert (ids, scores.tolist()) == (others, theirs.tolist())
    data = bytearray((folder / "memory.h5").read_bytes())
    place = data.index(found.scores["tracin"].tobytes()) + 3
    data[place] ^= 1
    (folder / "flipped.h5").write_bytes(data)
    with pytest.raises(InputError, match="tracin does not match its checksum"):
        Influence.load("flipped.h5")


HELD = """
import ctypes
from pathlib import Path
from replay import Replay, load_task
from replay.processes.alone import Alone
from replay.session.together import influence_together

def held():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10

task = load_task("work.py:task", trusted=True)
asked = {"methods": ["tracincp"], "checkpoints": 1}
run = Replay("run.h5", task, memory=24 << 20, threads=1)
run.influence(["a12000"], train_ids=["a1"], progress=False, **asked)
ctypes.CDLL(None).malloc_trim(0)
before = held()
influence_together(run, list(task.test), Alone(), Path("out.h5"), **asked).save("out.h5")
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process holds")
def test_memory_stays_within_its_budget(tmp_path, monkeypatch):
    """A table of 58 MB is filled and written by a process that is given 25."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(TASK.replace("20", "12_600").replace("14", "12_000"))
    trace(tmp_path / "run.h5", "work.py:task")
    done = script(HELD, cwd=tmp_path)
    assert int(done.stdout) < 24 << 20


def test_small_tables_stay_in_memory(tmp_path):
    some = Room(100, tmp_path)
    kinds = [type(some.zeros(size)) for size in (5, 8, 7, 0)]
    assert kinds == [np.ndarray, np.memmap, np.ndarray, np.ndarray]
    assert not list(tmp_path.iterdir())
    assert isinstance(Room().zeros((3, 4), bool), np.ndarray)


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room.np, "memmap", full)
    with pytest.raises(InputError, match=r"a table of 800 bytes .* No space left.*\n1. Ask for"):
        Room(0, tmp_path).zeros(100)
