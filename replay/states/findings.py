"""What taking a run again has found, by step; processes that share the work tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Findings:
    """Which steps of a run were taken again, and how they came out.

    Args:
        count: How many steps the run has.

    Attributes:
        proved: Steps whose parameters were computed bit for bit.
        unproved: Steps that were not.
        drift: How far the computed parameters were from each snapshot that they missed, of the way
            from the snapshot before.
        shows: What the first step that is not proved shows.
    """

    def __init__(self, count: int) -> None:
        self._count, self.shows = count, ""
        self.proved: set[int] = set()
        self.unproved: set[int] = set()
        self.drift: dict[int, float] = {}

    def found(self, steps: range) -> dict[str, NDArray[Any]]:
        """Return what was found of some steps, for another process."""
        missed = [t for t in self.drift if t - 1 in steps]
        shows = self.shows if min(self.unproved, default=-1) in steps else ""
        return {
            "proved": np.array([t for t in steps if t in self.proved], dtype=np.int64),
            "unproved": np.array([t for t in steps if t in self.unproved], dtype=np.int64),
            "missed": np.array(missed, dtype=np.int64),
            "drift": np.array([self.drift[t] for t in missed]),
            "shows": np.frombuffer(shows.encode(), np.uint8),
        }

    def adopt(self, found: Mapping[str, NDArray[Any]]) -> None:
        """Take over what another process has found."""
        first = min(self.unproved, default=self._count)
        self.unproved |= set(found["unproved"].tolist())
        self.proved = (self.proved | set(found["proved"].tolist())) - self.unproved
        self.drift |= dict(zip(found["missed"].tolist(), found["drift"].tolist(), strict=True))
        if min(self.unproved, default=self._count) < first:
            self.shows = found["shows"].tobytes().decode()
