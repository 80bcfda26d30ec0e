"""The writer thread: does checksums, coding and writing while training goes on.

What it wrote is committed when it has caught up for a moment, or is asked to. After the first
error it writes nothing more: the file is closed at the last good step.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from tracer.ring import Ring, Slot
from tracer.writer import LogWriter

Job: TypeAlias = Callable[[LogWriter], None]

_COMMIT_EVERY = 0.05  # seconds: what a kill may cost


class Background:
    """Runs jobs on a writer, in order, in a thread of its own.

    Args:
        open_writer: Makes the writer; runs in the thread.
        ring: Where slots go back to.

    Attributes:
        failure: What ended the writing, if anything did.
        committed: How many steps are on file.
        ring: Where slots come from and go back to.
    """

    def __init__(self, open_writer: Callable[[], LogWriter], ring: Ring) -> None:
        self.failure: Exception | None = None
        self.committed = 0
        self._open, self.ring = open_writer, ring
        self._jobs: queue.SimpleQueue[tuple[Job | None, Slot | None, threading.Event | None]]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tracer-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job, slot: Slot | None = None) -> None:
        """Have a job done; the slot is given back afterwards."""
        self._jobs.put((job, slot, None))

    def flush(self) -> None:
        """Return when everything submitted is on file, or writing has failed."""
        self._wait(_commit_and_sync)

    def close(self) -> None:
        """Close the log and end the thread."""
        if self._thread.is_alive():
            self._jobs.put((None, None, None))
            self._thread.join()

    def _wait(self, job: Job) -> None:
        done = threading.Event()
        self._jobs.put((job, None, done))
        while not done.wait(0.1):
            if not self._thread.is_alive():
                return

    def _run(self) -> None:
        writer: LogWriter | None = None
        due = 0.0  # when to commit; 0 if there is nothing to
        while True:
            try:
                left = max(0.0, due - time.monotonic()) if due else None
                job, slot, done = self._jobs.get(timeout=left)
            except queue.Empty:
                due = 0.0
                writer = self._attempt(writer, LogWriter.commit)
                continue
            if job is None:
                self._attempt(writer, LogWriter.close)
                return
            if writer is None and self.failure is None:
                writer = self._opened()
            writer = self._attempt(writer, job)
            if slot is not None:
                self.ring.give(slot)
            if done is not None:
                done.set()
            due = due or time.monotonic() + _COMMIT_EVERY
            if time.monotonic() > due:
                due = 0.0
                writer = self._attempt(writer, LogWriter.commit)

    def _opened(self) -> LogWriter | None:
        try:
            return self._open()
        except Exception as error:
            self.failure = error
            return None

    def _attempt(self, writer: LogWriter | None, job: Job) -> LogWriter | None:
        """Do a job; after a failure, give the writer up."""
        if writer is None:
            return None
        try:
            job(writer)
        except Exception as error:
            self.failure = error
            writer.abandon()
            return None
        self.committed = writer.committed
        return writer


def _commit_and_sync(writer: LogWriter) -> None:
    writer.commit()
    writer.sync()
