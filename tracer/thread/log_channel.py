"""The channel from the training thread to the log: its lock, its ring of rows, its writer thread.

When the log cannot be written any more, the channel ends with one warning and training goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TypeVar

from torch import Tensor

from tracer.codec.layout import Row, fields
from tracer.errors import TracingError, warn
from tracer.hdf5.patches import DamagedError
from tracer.hdf5.repair import repair
from tracer.log import schema
from tracer.log.lock_file import ForeignFileError, lock_path, this_process
from tracer.log.locking import WriterLock
from tracer.log.opening import require_writable
from tracer.log.write.resumption import unwritable, whole_steps
from tracer.log.write.writer import LogWriter
from tracer.thread.ring import Ring, Slot
from tracer.thread.writer_thread import Job, WriterThread

Seen = TypeVar("Seen")


class LogChannel:
    """Takes rows and jobs to one log.

    Args:
        path: The log.

    Attributes:
        stopped: Whether it ended because the log cannot be written.
        refused: Why the log cannot be locked or written, if that is so from the start.

    Raises:
        LogError: Somebody else is writing the log.
    """

    def __init__(self, path: Path) -> None:
        self.stopped = False
        self.refused: OSError | None = None
        self._path = path
        self._thread: WriterThread | None = None
        self._parameters: list[Tensor] = []
        self._lock: WriterLock | None = None
        try:
            self._lock = WriterLock(path, this_process())
        except OSError as error:
            self.refused = error

    def require_lock(self) -> None:
        """Raise TracingError if the log cannot be locked, and say so if a file is its lock."""
        if self.refused is not None:
            raise TracingError(
                f"the log {self._path} cannot be written: {self.refused.strerror}.\n"
                f"1. Choose another path for the log.\n"
                f"2. {_remedy(self._path, self.refused)}"
            ) from self.refused
        if self._lock is not None and self._lock.by_name:
            warn(
                f"the file system of {self._path} has no locks: the file {self._lock.path.name} "
                "beside it stands for one. If this run is killed, and goes on with resume=True on "
                "another machine, remove that file first."
            )

    def step_taken(self, count: int) -> None:
        """Note how many steps the run has taken, for those who read the log in this process."""
        if self._lock is not None:
            self._lock.taken = count

    @property
    def started(self) -> bool:
        """Whether there is a writer thread."""
        return self._thread is not None

    def require_writable(self) -> None:
        """Raise TracingError unless the log that is there can be gone on with; repair it."""
        try:
            if self.refused is None:
                require_writable(self._path)
                repair(self._path, schema.TABLES)
        except OSError as error:
            self.refused = error
        except DamagedError as error:
            raise TracingError(
                f"cannot resume {self._path}: {error}, nothing was changed; restore it from a copy "
                "and resume that, or pass overwrite=True to begin anew."
            ) from error
        if self.refused is not None:
            self.release()
            raise unwritable(self._path, self.refused) from self.refused

    def start(self, open_writer: Callable[[], LogWriter], parameters: Mapping[str, Tensor]) -> None:
        """Start the writer thread.

        Args:
            open_writer: Creates or opens the log, in that thread.
            parameters: What each row is a copy of.
        """
        self._parameters = list(parameters.values())
        pinned = any(p.is_cuda for p in self._parameters)
        self._thread = WriterThread(open_writer, Ring(fields(parameters), pinned=pinned))

    def resume(self, reopen: Callable[[], LogWriter], parameters: Mapping[str, Tensor]) -> None:
        """Start with a log that is there; if it cannot be written, training goes on without."""
        try:
            writer = reopen()
        except (OSError, RuntimeError) as error:
            self.fail(error)
        else:
            self.start(lambda: writer, parameters)

    def take(self) -> Slot:
        """Return a place for a copy of the parameters; may wait for the writer."""
        assert self._thread is not None
        return self._thread.take()

    def put(self, slot: Slot, job: Callable[[LogWriter, Row], None]) -> None:
        """Copy the parameters as they are, and have a job done with the copy."""
        assert self._thread is not None
        slot.fill(self._parameters)
        self._thread.submit(lambda writer: job(writer, slot.row()), slot)

    def submit(self, job: Job) -> None:
        """Have a job done after those before."""
        assert self._thread is not None
        self._thread.submit(job)

    def flush(self) -> None:
        """Return when everything so far is on file."""
        if self._thread is not None:
            self._thread.flush()
            self.report()

    def close(self) -> None:
        """Close the log, if there is one; others may write it then."""
        try:
            if self._thread is not None:
                self._thread.close()
                self.report()
        finally:
            self.release()

    def report(self) -> None:
        """Say once that the log cannot be written."""
        if self._thread is not None and self._thread.failure is not None:
            self.fail(self._thread.failure)

    def fail(self, error: Exception) -> None:
        """End the log, which cannot be written."""
        known = isinstance(error, TracingError)
        self.stop(str(error) if known else f"{self._path} cannot be written ({error})")

    def attempt(self, look: Callable[[], Seen], where: str) -> Seen | None:
        """Return what was looked at; if it cannot be logged, end the log and return None.

        Args:
            look: Looks at model or optimizer, whatever somebody has made of them.
            where: For the message.
        """
        try:
            return look()
        except TracingError as error:
            self.stop(str(error).rstrip("."))
        except Exception as error:  # training goes on whatever it was
            found = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
            self.stop(f"{where} cannot be logged ({found})")
        return None

    def release(self) -> None:
        """Let others write the log, as soon as the writer thread has ended."""
        if self._lock is None:
            return
        if self._thread is None:
            self._lock.release()
        else:
            self._thread.at_end(self._lock.release)

    def stop(self, why: str) -> None:
        """End the log at its last whole step, with one warning; training goes on."""
        if self.stopped:
            return
        self.stopped = True
        began, steps = False, 0
        try:
            if self._thread is not None:
                self._thread.close()
                began, steps = self._thread.began, self._thread.committed
            if began or self._thread is None:
                with contextlib.suppress(OSError, DamagedError):
                    repair(self._path, schema.TABLES)
        finally:
            self.release()
        if self._thread is None:  # the run was to go on with what is there
            began, steps = True, whole_steps(self._path)
        left = (
            f"The log {self._path} is closed with {steps} complete steps"
            if began
            else "No log of this run was made, and none was changed"
        )
        warn(f"tracing stopped: {why}. {left}; training continues without tracing.")


def _remedy(path: Path, error: OSError) -> str:
    lock = lock_path(path)
    if isinstance(error, ForeignFileError):
        return f"Remove or rename {lock}, which tracing leaves alone."
    return f"Make the folder {lock.parent} writable, or make room there."
