"""The parameters of a log that has them in its full states only, as far as it has them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from tracer.codec.layout import Field, Row, pack
from tracer.errors import LogError
from tracer.log.parts.full_states import FullStates


class StateSnapshots:
    """Reads rows of parameters out of full states; see ``Snapshots``.

    Args:
        path: The log, for messages.
        states: Its full states.
        layout: Of a row.
    """

    def __init__(self, path: Path, states: FullStates, layout: Sequence[Field]) -> None:
        self._path, self._states, self._layout = path, states, layout
        self._known: dict[tuple[int, int], bool] = {}

    def length(self, least: int) -> int:
        """Return ``least``: a step needs no row."""
        return least

    def forget(self) -> None:
        """Do nothing: nothing is kept."""

    def numbers(self, last: int, crc: int | None) -> list[int]:
        """Return the numbers of the states on file, in order.

        A kill may leave a final state behind that does not belong to the step before it.

        Args:
            last: The number of the final state.
            crc: Checksum of its parameters; None if there is no step.
        """
        found = [t for t in self._states.steps() if t <= last]
        if crc is None or last not in found or self._states.closed:
            return found
        if (last, crc) not in self._known:
            self._known[last, crc] = self._of(last, crc) is not None
        return [t for t in found if t != last or self._known[last, crc]]

    def read(self, t: int, crc: int | None, *, last: bool = False) -> Row | None:
        """Return row ``t``; None if it does not match its checksum.

        Raises:
            LogError: There is no full state before step ``t``.
        """
        if t not in (self.numbers(t, crc) if last else self.numbers(t, None)):
            raise LogError(
                f"{self._path} holds no snapshot of the parameters before step {t}, only "
                "their digest. Remedies:\n"
                f"  1. compute it: Replay(log).state_dict({t}), which needs the task;\n"
                "  2. write them all: tracin-replay convert LOG --snapshot-every 1 -o DENSE;\n"
                "  3. take a step that is on file: see states()."
            )
        return self._of(t, crc)

    def _of(self, t: int, crc: int | None) -> Row | None:
        found = self._states.decode(t)["parameters"]
        row = pack({field.name: found[field.name] for field in self._layout})
        return row if crc is None or zlib.crc32(row.data) == crc else None

    def is_whole(self, t: int, crc: int) -> bool:
        """Return True: a step's digest is in its meta row."""
        return True

    def is_replaced(self, t: int, crc: int) -> bool:
        """Return False: there is no spare."""
        return False
