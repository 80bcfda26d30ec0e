"""The writer thread: does checksums, coding and writing while training goes on.

It works in bursts, since each call into HDF5 costs the training thread the interpreter's lock.
After the first error it writes nothing more: the file is closed at the last good step.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

from tracer.log.write.writer import LogWriter
from tracer.thread.ring import Ring, Slot

Job: TypeAlias = Callable[[LogWriter], None]

_BURST = 0.2  # seconds that jobs are collected for; what a kill may cost, about


class WriterThread:
    """Runs jobs on a writer, in order, in a thread of its own.

    Args:
        open_writer: Makes the writer; runs in the thread.
        ring: Where slots go back to.

    Attributes:
        failure: What ended the writing, if anything did.
        committed: How many steps are on file.
        began: Whether there is a log of the run.
        ring: Where slots come from and go back to.
    """

    def __init__(self, open_writer: Callable[[], LogWriter], ring: Ring) -> None:
        self.failure: Exception | None = None
        self.committed, self.began = 0, False
        self._open, self.ring = open_writer, ring
        self._writer: LogWriter | None = None
        self._hurry = threading.Event()
        self._ending, self._ended = threading.Lock(), False
        self._last: Callable[[], None] | None = None
        self._jobs: queue.SimpleQueue[tuple[Job | None, Slot | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="tracer-writer", daemon=True)
        self._thread.start()

    def take(self) -> Slot:
        """Return a free slot of the ring; hurries the writer when half of them are in use."""
        if self.ring.is_short():
            self._hurry.set()
        return self.ring.take()

    def submit(self, job: Job, slot: Slot | None = None) -> None:
        """Have a job done; the slot is given back afterwards."""
        self._jobs.put((job, slot))

    def flush(self) -> None:
        """Return when everything submitted is on file, or writing has failed."""
        done = threading.Event()

        def finish(writer: LogWriter) -> None:
            writer.commit()
            writer.sync()
            done.set()

        self._jobs.put((finish, None))
        self._hurry.set()
        while self.failure is None and self._thread.is_alive() and not done.wait(0.1):
            pass

    def close(self) -> None:
        """Close the log and end the thread; it takes two Ctrl-C not to wait for that."""
        if self._thread.is_alive():
            self._jobs.put((None, None))
            self._hurry.set()
            try:
                self._thread.join()
            except KeyboardInterrupt:
                self._thread.join()  # what is left takes a moment
                raise

    def at_end(self, last: Callable[[], None]) -> None:
        """Have something done once the thread has ended: by it, or at once."""
        with self._ending:
            if not self._ended:
                self._last = last
                return
        last()

    def _live(self) -> None:
        try:
            self._run()
        finally:
            with self._ending:
                self._ended = True
            if self._last is not None:
                self._last()

    def _run(self) -> None:
        while True:
            burst = [self._jobs.get()]
            self._hurry.wait(_BURST)
            self._hurry.clear()
            with contextlib.suppress(queue.Empty):
                while burst[-1][0] is not None:
                    burst.append(self._jobs.get_nowait())
            self._write([(job, slot) for job, slot in burst if job is not None])
            if burst[-1][0] is None:
                self._do(LogWriter.close)
                return

    def _write(self, burst: list[tuple[Job, Slot | None]]) -> None:
        """Do jobs; their slots are free once what they hold is written, half a ring at a time.

        Where the disk may be full before that, in smaller parts: what fits is kept.
        """
        held: list[Slot] = []
        for job, slot in burst:
            self._do(job)
            if slot is not None:
                held.append(slot)
            if 2 * len(held) >= self.ring.size or self._is_short():
                self._commit(held)
        self._commit(held)

    def _is_short(self) -> bool:
        with contextlib.suppress(OSError):
            return self.failure is None and self._writer is not None and self._writer.is_short()
        return False

    def _commit(self, held: list[Slot]) -> None:
        self._do(LogWriter.commit)
        for slot in held:
            self.ring.give(slot)
        held.clear()

    def _do(self, job: Job) -> None:
        """Do a job; after a failure, give the writer up."""
        if self.failure is not None:
            return
        try:
            if self._writer is None:
                self._writer = self._open()
                self.began = True
            job(self._writer)
            self.committed = self._writer.committed
        except Exception as error:
            self.failure = error
            if self._writer is not None:
                self.committed = self._writer.committed
                self._writer.abandon()
