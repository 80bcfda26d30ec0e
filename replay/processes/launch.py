"""Starts the same command on several processes of this machine, with torchrun's own machinery."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

BEGUN = "TRACIN_REPLAY_BEGUN"  # in the environment of processes that this program has begun
_THREADS = "OMP_NUM_THREADS"
_RESTARTS = 3  # of a job one of whose processes was killed
_BEGIN = "import sys; sys.path[:] = {}; from replay.command.entry import main; main()"


def on_several(workers: int, arguments: Sequence[str]) -> int:
    """Run the program on several processes; return its exit code.

    The machine's processors are divided among them, unless OMP_NUM_THREADS says how many threads
    each has. If one is killed, all start again and go on from what is finished.

    Args:
        workers: How many processes.
        arguments: Of the program.
    """
    os.environ.setdefault(_THREADS, str(threads_each(workers)))
    os.environ[BEGUN] = str(workers)
    code, path = 0, [str(one) for one in sys.path]  # a user's replay.py is not what is meant
    for _ in range(1 + _RESTARTS):
        code = _launched(workers, ["-c", _BEGIN.format(path), *arguments])
        if code >= 0:
            return code
    return 128 - code


def cores() -> int:
    """Return how many processors this program may use."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return known or 1


def at_once(workers: int, threads: int) -> int:
    """Return how many of some processes run at once, each with so many threads."""
    return max(1, min(workers, cores() // threads))


def threads_each(workers: int) -> int:
    """Return how many threads each process has."""
    told = os.environ.get(_THREADS, "")
    return int(told) if told.isdigit() else max(1, cores() // workers)


def _launched(workers: int, arguments: Sequence[str]) -> int:
    """Run Python with some arguments on several processes.

    Return the exit code of the first process that failed, negative if it was killed; or 0.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the processes say what is wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        logging.disable(logging.NOTSET)
    return 0
