"""Counterfactual runs on several processes of this machine, each with a replay of its own.

A run comes out the same in whichever process it is taken: all have the same number of threads.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from replay.counterfactual.runs import Known, Runs, Table
from replay.session.alternatives import Alternatives
from replay.session.bound_run import BoundRun
from replay.session.counterfactual_runs import runs_of
from replay.session.opening import bound
from tracer.errors import InputError


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
        """Return the work on some runs.

        Raises:
            InputError: The task cannot be sent to other processes.
        """
        own = run.models
        how = {
            "device": own.device,
            "dtype": own.test.dtype,
            "values": "model" if own.value.dtype is None else "float64",
            "memory": run.budget,
            "audit": 100,
            "allow_tf32": run.computing.allow_tf32,
            "match_environment": run.computing.environment is not None,
            "announce": None,
        }
        threads = torch.get_num_threads()
        work = cls(run.log.path.resolve(), run.source, how, threads, asked, runs.known)
        try:
            pickle.dumps(work)
        except Exception as error:
            raise InputError(
                f"several workers need the task in other processes, and it cannot be sent there "
                f"({str(error)[:100]}).\n"
                '1. Name it: Replay(log, "file.py:task"), or the log\'s own: Replay(log).\n'
                "2. Or use one process: workers=1."
            ) from error
        return work


def taken_apart(work: Work, numbers: list[int], workers: int) -> Iterator[tuple[int, Table]]:
    """Yield the number and the values of each run, in the order in which they are done.

    Raises:
        InputError: A process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(numbers))
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(work,))
    try:
        futures = {pool.submit(_values, number): number for number in numbers}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker was ended from outside, perhaps for want of memory; ask again with fewer "
            "workers, and finished runs are not taken again."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_WORK: list[Work] = []  # of this process


def _begin(work: Work) -> None:
    _WORK.append(work)


def _values(number: int) -> Table:
    run, runs = _opened()
    with run.computing():
        return runs.values(_WORK[0].asked.changes[number])


@cache
def _opened() -> tuple[BoundRun, Runs]:
    work = _WORK[0]
    torch.set_num_threads(work.threads)
    run = bound(work.log, work.task, **work.how)
    with run.computing():
        runs = runs_of(run, work.asked)
        runs.adopt(work.known)
    return run, runs
