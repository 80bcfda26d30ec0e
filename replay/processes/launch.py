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

    Each has one thread, unless OMP_NUM_THREADS says how many: then bits do not depend on how many
    processes there are. If one is killed, all start again and go on from what is finished.

    Args:
        workers: How many processes.
        arguments: Of the program.
    """
    has_threads()
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


def has_threads() -> None:
    """Let this process of a job have as many threads as all; torch looks when it is imported."""
    os.environ.setdefault(_THREADS, str(threads_each()))


def threads_each() -> int:
    """Return how many threads each process of a job has: as told, or one, as torchrun says, too."""
    told = os.environ.get(_THREADS, "")
    return int(told) if told.isdigit() else 1


def idle(workers: int) -> str | None:
    """Return what to say where threads could be divided among processes; None if they are."""
    each = cores() // workers
    if _THREADS in os.environ or each < 2:
        return None
    return (
        f"{workers} of {cores()} processors will work: each process of a job has one thread. "
        f"--threads {each} takes all; the last bits of results are then others."
    )


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
