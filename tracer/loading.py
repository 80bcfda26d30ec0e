"""Whether a program's file is only being imported: then it must not begin to train.

A replay imports the file that holds the task, and a worker process that is spawned imports its
parent's. Without a guard each would train once more, and replace the log that is read or written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing import process

from tracer.errors import TaskError, TracingError

_GUARD = 'put the training, with the wrapper, under: if __name__ == "__main__":'
_files: ContextVar[tuple[str, ...]] = ContextVar("files that are being loaded", default=())


@contextmanager
def loading(file: str) -> Iterator[None]:
    """While a task's file is imported, in this thread.

    Raises:
        TaskError: It is being imported already: it replays itself.
    """
    if file in _files.get():
        raise TaskError(
            f"{file} is being imported for its task and loads that task itself; put the replay "
            'under: if __name__ == "__main__":'
        )
    before = _files.set((*_files.get(), file))
    try:
        yield
    finally:
        _files.reset(before)


def require_training() -> None:
    """Raise TracingError where a file is only imported and no run may begin."""
    if _files.get():
        raise TracingError(
            f"importing {_files.get()[-1]} for its task began to train, which would write a log "
            f"anew; {_GUARD}"
        )
    if getattr(process.current_process(), "_inheriting", False):  # as multiprocessing asks itself
        raise TracingError(
            "a worker process imported the training program and began to train, too; " + _GUARD
        )
