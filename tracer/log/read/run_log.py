"""RunLog: reads a run log, checks every sum, never imports the task that it names."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from tracer.codec.layout import read_layout, shapes, unpack
from tracer.errors import LogError, shown
from tracer.log import opening, schema
from tracer.log.locking import is_being_written
from tracer.log.opening import open_file
from tracer.log.parts import segments
from tracer.log.parts.full_states import FullStates
from tracer.log.parts.hyperparameters import ever_used
from tracer.log.read.snapshots import Snapshots
from tracer.log.read.state_snapshots import StateSnapshots
from tracer.log.read.step_reader import StepReader
from tracer.log.read.tables import LogTables, require_filters
from tracer.log.read.unclosed import say_unclosed
from tracer.log.read.whole_steps import WholeSteps
from tracer.records import ID, Step


def open_log(path: str | Path) -> RunLog:
    """Open a run log for reading, also while training writes it or after it was killed.

    A log that its writer did not close is repaired in place, or read as if it were where it may
    not be written; a ``LogWarning`` says so and names the last whole step. Of a log that is being
    written it says how many steps there are so far.

    Args:
        path: The file.

    Raises:
        LogError: It is missing, unreadable, not a run log, or of a newer format.
    """
    return RunLog(path)


def is_log(path: Path) -> bool:
    """Return whether a regular file is a run log; nothing is repaired."""
    try:
        return opening.is_log(path)
    except LogError:
        return False


class RunLog:
    """A traced run: steps ``0..T−1`` and parameters ``w_0..w_T``.

    Attributes:
        path: The file.
        live: Whether training writes it; ``refresh`` then finds new steps.
        tables: The file's tables.
        snapshots: Its parameters, as far as they are on file.
        full_states: Its full states.
        parameter_layout: Shape and dtype of every parameter of the model, by name.
        buffer_layout: Likewise for buffers.
        facts: What holds for every step.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self.path = Path(path)
        except TypeError:
            raise LogError(f"expected the path of a run log, found {shown(path)}.") from None
        self._opened = opened = open_file(self.path)
        self._file, self.live = opened.file, opened.live
        try:
            self._attributes = opened.attributes
            self.tables = LogTables(self.path, self._file)
            require_filters(self.path, self._file)
            layouts = (self._layout(name, rows) for name, rows in schema.LAYOUTS)
            self.facts = schema.facts_of(self._attributes, *layouts)
            self._steps = StepReader(self.tables, self.facts)
            self.full_states = FullStates(self.tables)
            self.snapshots = self._snapshots()
            self._whole = WholeSteps(self.tables, self._steps, self.snapshots)
            self._length = self._whole.count(live=self.live)
        except (KeyError, ValueError, OSError, RuntimeError, OverflowError, TypeError) as error:
            self.close()
            raise LogError(
                f"{self.path} is a damaged run log: {error}; restore it from a copy."
            ) from error
        except BaseException:
            self.close()
            raise
        torn = 0 if self.live else max(0, self.tables.length(schema.META) - len(self))
        say_unclosed(self.path, len(self), torn, opened)
        self.parameter_layout = shapes(self.facts.parameters)
        self.buffer_layout = shapes(self.facts.buffers)

    def __repr__(self) -> str:
        rule, count = self._attributes["update_rule"], len(self.parameter_layout)
        state = ", live" if self.live else ""
        return f"<RunLog {self.path}: {len(self)} steps of {rule}, {count} parameters{state}>"

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def refresh(self) -> int:
        """See what a live writer has added; return the number of steps."""
        if self.live:
            self.tables.refresh()
            self.snapshots.forget()
            self._length = max(self._length, self._whole.count(live=True))
        return self._length

    def is_being_written(self) -> bool:
        """Return whether a live process has the log open for writing."""
        return is_being_written(self.path)

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the run's metadata; ``closed`` says whether the log was ended cleanly."""
        found = dict(self._attributes)
        found["task"] = found.get("task") or None
        status = self.tables.status()
        found["closed"] = bool(status["closed"])
        found["sync_every"] = int(status["sync_every"])
        found["id_type"] = "str" if status["strings"] else "int"
        return found

    def batch_ids(self, t: int) -> list[ID]:
        """Return the IDs of step ``t``, in order, with repeats."""
        return self.step(t).batch_ids

    def learning_rate(self, t: int) -> tuple[float, ...]:
        """Return the learning rate that step ``t`` used, one for each group."""
        return self.step(t).learning_rate

    def parameters(self, t: int) -> dict[str, Tensor]:
        """Return ``w_t``, the parameters before step ``t``; ``t = T`` gives the final ones.

        Raises:
            IndexError: There is no such state.
            LogError: It does not match its checksum, or only its digest is on file (``is_dense``).
        """
        self._check_index(t, len(self) + 1)
        row = self.snapshots.read(t, self._parameters_crc(t), last=t == len(self))
        if row is None:
            raise LogError(
                f"{self.path}: the parameters before step {t} ({schema.WEIGHTS}) do not match "
                "their checksum; the file is damaged, restore it from a copy."
            )
        return unpack(row, self.facts.parameters)

    @property
    def is_dense(self) -> bool:
        """Whether the parameters before every step are on file; else those of ``states()``."""
        return int(self._attributes["snapshot_every"]) == 1

    def digest(self, t: int) -> int | None:
        """Return the CRC-32 of ``w_t`` as a byte row; None in a log without steps."""
        self._check_index(t, len(self) + 1)
        return self._parameters_crc(t)

    def buffers(self, t: int) -> dict[str, Tensor]:
        """Return ``β_t``, the buffers before step ``t``'s first forward; ``T``: the final ones."""
        self._check_index(t, len(self) + 1)
        if not self.facts.buffers or not len(self):
            return {}
        found = self._steps.buffers(min(t, len(self) - 1), after=t == len(self))
        return unpack(found, self.facts.buffers)

    def steps(self) -> Iterator[Step]:
        """Yield every step, in order."""
        for t in range(len(self)):
            yield self.step(t)

    def step(self, t: int) -> Step:
        """Return step ``t``.

        Raises:
            IndexError: There is no such step.
            LogError: The record does not match its checksums; names the table.
        """
        self._check_index(t, len(self))
        return self._steps.step(t)

    def states(self) -> list[int]:
        """Return the steps before which the full state is on file, in order."""
        last = len(self)
        if isinstance(self.snapshots, StateSnapshots) and last:
            return self.snapshots.numbers(last, self._parameters_crc(last))
        return [t for t in self.full_states.steps() if t <= last]

    def state(self, t: int) -> dict[str, Any]:
        """Return the full state before step ``t``, one of ``states()``.

        Returns:
            ``parameters`` and ``buffers`` by name, ``optimizer`` (its ``state_dict``), ``random``
            (``cpu``, and ``cuda`` by device), ``epoch``.

        Raises:
            LogError: There is none, or it does not match its checksum.
        """
        return self.full_states.decode(t)

    def segments(self) -> list[tuple[int, str]]:
        """Return where each process that wrote the log began: the step, and when."""
        return segments.decode(self.tables)

    def ever_used(self, hyperparameter: str) -> bool:
        """Return whether any step had a group in which a number was there and not zero."""
        return ever_used(self.tables, self.facts, hyperparameter)

    def ends(self, t: int) -> dict[str, int]:
        """Return the length of each part's tables before step ``t``, which has a full state."""
        return {**self._steps.ends(t), **self.full_states.end(t)}

    def _snapshots(self) -> Snapshots | StateSnapshots:
        if not self.is_dense:
            return StateSnapshots(self.path, self.full_states, self.facts.parameters)
        coding = [self._attributes[k] for k in ("encoding", "momentum", "keyframe_every")]
        return Snapshots(self.tables, self.facts.parameters, coding)

    def _layout(self, name: str, rows: str) -> list[Any]:
        table = self.tables.layout(name)
        if zlib.crc32(table.tobytes()) != self._attributes[name.replace("/", "_") + "_crc"]:
            raise self.tables.damage(name, "does not match its checksum")
        return read_layout(table, self.tables.width(rows))

    def _parameters_crc(self, t: int) -> int:
        if not len(self):
            return int(self.tables.status()["parameters_crc"])
        meta = self._steps.meta(min(t, len(self) - 1))
        return int(meta["parameters_after_crc" if t == len(self) else "parameters_crc"])

    def _check_index(self, t: int, count: int) -> None:
        if not 0 <= t < count:
            raise IndexError(f"{self.path} holds {len(self)} steps; there is no number {t}.")
