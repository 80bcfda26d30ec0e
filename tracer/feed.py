"""The way from the training thread to the log: its lock, its ring of rows, its writer thread.

When the log cannot be written any more, the way ends with one warning and training goes on.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from tracer import superblock
from tracer.background import Background, Job
from tracer.errors import TracingWarning
from tracer.layout import Row, fields
from tracer.locking import WriterLock
from tracer.ring import Ring, Slot
from tracer.writer import LogWriter


class Feed:
    """Feeds one log.

    Args:
        path: The log.

    Attributes:
        stopped: Whether it ended because the log cannot be written.

    Raises:
        LogError: Somebody else is writing the log.
    """

    def __init__(self, path: Path) -> None:
        self.stopped = False
        self._path = path
        self._background: Background | None = None
        self._parameters: list[Tensor] = []
        self._lock: WriterLock | None = None
        try:
            self._lock = WriterLock(path, f"process {os.getpid()} on {os.uname().nodename}")
        except OSError as error:
            self._unwritable(error)

    @property
    def started(self) -> bool:
        """Whether there is a writer thread."""
        return self._background is not None

    def start(self, open_writer: Callable[[], LogWriter], parameters: Mapping[str, Tensor]) -> None:
        """Start the writer thread.

        Args:
            open_writer: Creates or opens the log, in that thread.
            parameters: What each row is a copy of.
        """
        self._parameters = list(parameters.values())
        pinned = any(p.is_cuda for p in self._parameters)
        self._background = Background(open_writer, Ring(fields(parameters), pinned=pinned))

    def take(self) -> Slot:
        """Return a place for a copy of the parameters; may wait for the writer."""
        assert self._background is not None
        return self._background.take()

    def put(self, slot: Slot, job: Callable[[LogWriter, Row], None]) -> None:
        """Copy the parameters as they are, and have a job done with the copy."""
        assert self._background is not None
        slot.fill(self._parameters)
        self._background.submit(lambda writer: job(writer, slot.row()), slot)

    def submit(self, job: Job) -> None:
        """Have a job done after those before."""
        assert self._background is not None
        self._background.submit(job)

    def flush(self) -> None:
        """Return when everything so far is on file."""
        if self._background is not None:
            self._background.flush()
            self.report()

    def close(self) -> None:
        """Close the log, if there is one; others may write it then."""
        try:
            if self._background is not None:
                self._background.close()
                self.report()
        finally:
            self.release()

    def report(self) -> None:
        """Say once that the log cannot be written."""
        if self._background is not None and self._background.failure is not None:
            self._unwritable(self._background.failure)

    def _unwritable(self, error: Exception) -> None:
        self.stop(f"{self._path} cannot be written ({error})", depth=6)

    def release(self) -> None:
        """Let others write the log, as soon as the writer thread has ended."""
        if self._lock is None:
            return
        if self._background is None:
            self._lock.release()
        else:
            self._background.at_end(self._lock.release)

    def stop(self, why: str, depth: int = 4) -> None:
        """End the log at its last whole step, with one warning; training goes on."""
        if self.stopped:
            return
        self.stopped = True
        steps = 0
        try:
            if self._background is not None:
                self._background.close()
                steps = self._background.committed
                with contextlib.suppress(OSError):
                    superblock.repair(self._path)
        finally:
            self.release()
        warnings.warn(
            f"tracing stopped: {why}. It holds {steps} whole steps and is closed; training goes "
            "on untraced.",
            TracingWarning,
            stacklevel=depth,
        )
