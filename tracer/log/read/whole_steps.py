"""How many steps of a log are whole."""

from __future__ import annotations

from tracer.errors import LogError
from tracer.log import schema
from tracer.log.read.snapshots import Snapshots
from tracer.log.read.state_snapshots import StateSnapshots
from tracer.log.read.step_reader import StepReader
from tracer.log.read.tables import LogTables


class WholeSteps:
    """Counts them.

    Args:
        tables: The log's tables.
        steps: Its steps.
        snapshots: Its parameters.
    """

    def __init__(
        self, tables: LogTables, steps: StepReader, snapshots: Snapshots | StateSnapshots
    ) -> None:
        self._tables, self._steps, self._snapshots = tables, steps, snapshots

    def count(self, *, live: bool) -> int:
        """Return all steps of a closed log, else those up to the last valid one.

        Args:
            live: Whether a writer is at work on it.
        """
        status, rows = self._tables.status(), self._tables.length(schema.META)
        snapshots = self._snapshots.length(rows + 1)
        if status["closed"] and not live:
            if rows != status["steps"] or snapshots < rows + min(rows, 1):
                raise self._tables.damage(
                    schema.META, f"has {rows} of {status['steps']} steps that were closed with it"
                )
            return rows
        steps = max(0, min(rows, snapshots - 1))
        while steps > 0 and not self._is_whole(steps - 1):
            steps -= 1
        synced = steps if live else max(0, steps - int(status["sync_every"]))
        return next((t for t in range(synced, steps) if not self._is_whole(t)), steps)

    def _is_whole(self, t: int) -> bool:
        """Return whether a step and the parameters after it match their checksums."""
        try:
            self._steps.require_whole(t)
            crc = int(self._steps.meta(t)["parameters_after_crc"])
            return self._snapshots.is_whole(t + 1, crc)
        except LogError:
            return False
