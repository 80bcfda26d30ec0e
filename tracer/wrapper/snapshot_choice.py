"""How often a run's parameters go into its log: what was asked for, or what keeps the log small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracer.errors import TracingError, shown

DENSE_ROW = 128_000  # bytes of parameters that every step may write
DENSE_LOG = 1_000_000_000  # ... and of all steps, where their number is known
SPARSE = 100  # steps between snapshots otherwise
EPOCH = 0  # a snapshot where an epoch begins
DENSE = 1


@dataclass(frozen=True)
class SnapshotChoice:
    """Where snapshots of the parameters stand.

    Attributes:
        every: Steps from one to the next; ``EPOCH`` is one where an epoch begins.
        why: Why, for whoever watches the training; empty where it was asked for.
    """

    every: int
    why: str = ""

    @property
    def asked(self) -> int | str:
        """What asks for it."""
        return self.every or "epoch"

    @property
    def is_dense(self) -> bool:
        """Whether every step's parameters are in the log."""
        return self.every == DENSE

    def __str__(self) -> str:
        if self.is_dense:
            return "parameters of every step" + self.why
        where = f"every {self.every} steps" if self.every else "where an epoch begins"
        return f"a full state {where}, a digest of every step" + self.why


def chosen(asked: Any, row_bytes: int, steps: int | None) -> SnapshotChoice:
    """Return what ``snapshot_every`` means for a run.

    Args:
        asked: ``"auto"``, ``"epoch"`` or a number of steps.
        row_bytes: Bytes of the parameters.
        steps: How many the run has, None if nobody knows.

    Raises:
        TracingError: It is none of them.
    """
    if asked == "epoch":
        return SnapshotChoice(EPOCH)
    if asked == "auto":
        return _small(row_bytes, steps)
    if type(asked) is not int or asked < 1:
        raise TracingError(
            f'snapshot_every must be a number of steps, "epoch" or "auto", found {shown(asked)}.'
        )
    return SnapshotChoice(asked)


def _small(row_bytes: int, steps: int | None) -> SnapshotChoice:
    dense = row_bytes <= DENSE_ROW if steps is None else row_bytes * steps <= DENSE_LOG
    if dense:
        return SnapshotChoice(DENSE)
    return SnapshotChoice(SPARSE, " (snapshot_every=1: the parameters of every step)")
