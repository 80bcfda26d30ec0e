"""Counterfactual runs on several processes of this machine, each with a replay of its own.

A run comes out the same in whichever process it is taken: all have the same number of threads.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from replay.counterfactual.runs import Known, Runs, Table
from replay.counterfactual.stacks import taken
from replay.loading import tasks_last_on_path
from replay.session.alternatives import Alternatives
from replay.session.bound_run import BoundRun
from replay.session.counterfactual_runs import runs_of
from replay.session.opening import bound
from replay.session.started import Started
from tracer.errors import InputError

_INSTEAD = (
    '1. Name it: Replay(log, "file.py:task"), or the log\'s own: Replay(log).\n'
    "2. Or use one process: workers=1."
)


@dataclass(frozen=True)
class Work:
    """What a process needs to know: how to open the run, what is asked, what was found already."""

    log: Path
    task: Any
    how: dict[str, Any]
    threads: int
    asked: Alternatives
    known: Known

    @classmethod
    def of(cls, run: BoundRun, asked: Alternatives, runs: Runs) -> Work:
        """Return the work on some runs."""
        own = run.models
        how = {
            "device": own.device,
            "dtype": own.test.dtype,
            "values": "model" if own.value.dtype is None else "float64",
            "memory": run.budget,
            "audit": 100,
            "allow_tf32": run.computing.allow_tf32,
            "match_environment": run.computing.environment is not None,
            "threads": None,
            "announce": None,
        }
        threads = torch.get_num_threads()
        return cls(run.log.path.resolve(), run.source, how, threads, asked, runs.known)

    def packed(self) -> bytes:
        """Return it as bytes.

        Raises:
            InputError: The task cannot be sent to other processes.
        """
        try:
            return pickle.dumps(self)
        except Exception as error:
            raise InputError(
                f"several workers need the task in other processes, and it cannot be sent there "
                f"({str(error)[:100]}).\n{_INSTEAD}"
            ) from error

    @staticmethod
    def unpacked(data: bytes) -> Work:
        """Return what was packed in another process.

        Raises:
            InputError: The task cannot be found here.
        """
        try:
            work: Work = pickle.loads(data)
        except Exception as error:
            raise InputError(
                f"a worker cannot find the task that it was sent ({type(error).__name__}: "
                f"{str(error)[:100]}).\n{_INSTEAD}"
            ) from error
        return work


def taken_apart(
    work: Work, todo: list[list[int]], workers: int
) -> Iterator[tuple[list[int], list[Table]]]:
    """Yield the numbers and the values of runs that are taken together, as they are done.

    Raises:
        InputError: A process ended before its work was done; says how it ended.
    """
    started, known = Started(), (work.packed(), sys.path[:])
    count = min(workers, len(todo))
    with tasks_last_on_path():
        pool = ProcessPoolExecutor(count, started, initializer=_begin, initargs=known)
        futures = {pool.submit(_taken, some): some for some in todo}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        pool.shutdown()
        raise started.ended() from error
    except BaseException:  # finished runs are kept; others would take as long as they take
        started.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_DATA: list[bytes] = []  # of this process


def _begin(data: bytes, path: list[str]) -> None:
    """Look for the task where the program does, now that torch is imported."""
    sys.path[:] = path
    _DATA.append(data)


def _taken(numbers: list[int]) -> list[Table]:
    run, runs, asked = _opened()
    with run.computing.again():
        return taken(runs, [asked.changes[number] for number in numbers])


@cache
def _opened() -> tuple[BoundRun, Runs, Alternatives]:
    work = Work.unpacked(_DATA[0])
    torch.set_num_threads(work.threads)
    run = bound(work.log, work.task, **work.how)
    with run.computing.again():
        runs = runs_of(run, work.asked)
        runs.adopt(work.known)
    return run, runs, work.asked
