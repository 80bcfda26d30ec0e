"""Periods: into which stretches of the run scores are divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replay.arguments import whole
from replay.names import EPOCH, STEP
from replay.states.checkpoints import epochs
from tracer.errors import InputError, shown
from tracer.log.read.run_log import RunLog


@dataclass(frozen=True)
class Periods:
    """Periods of a window of steps; what a visit earns belongs to the period of its step.

    Attributes:
        by: ``"epoch"``, ``"step"`` or how many steps one has; empty if nothing is divided.
        start: The first step of the window.
        labels: Of each period: its epoch, or its first step.
        places: The place of each step's period among them.
    """

    by: str = ""
    start: int = 0
    labels: tuple[int, ...] = ()
    places: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, log: RunLog, by: str | int | None, steps: range, checkpoints: Sequence[int]
    ) -> Periods:
        """Return the periods of a window.

        Args:
            log: The run.
            by: ``"epoch"``, ``"step"``, or a number of steps; None divides nothing.
            steps: The window.
            checkpoints: States that scores are summed over; each belongs to a period.

        Raises:
            InputError: It cannot be read, or a checkpoint is outside of the window.
        """
        if by is None:
            return cls()
        names = _names(log, by, steps)
        labels = tuple(dict.fromkeys(names))
        place = {label: k for k, label in enumerate(labels)}
        outside = [k for k in checkpoints if not steps.start <= k <= steps.stop]
        if outside:
            raise InputError(
                f"by= divides the steps {steps.start}:{steps.stop}, and checkpoint {outside[0]} "
                "is outside of them.\n"
                "1. Give checkpoints of that window (checkpoints=[...]).\n"
                "2. Or leave steps= out: periods of the whole run hold every checkpoint."
            )
        return cls(
            by if isinstance(by, str) else str(whole("by", by)),
            steps.start,
            labels,
            tuple(place[name] for name in names),
        )

    def __len__(self) -> int:
        """Return how many there are; one if nothing is divided."""
        return max(1, len(self.labels))

    @property
    def tables(self) -> int:
        """How many tables of scores a method has: one of each period, and their sum."""
        return 1 + len(self.labels)

    def of_step(self, t: int) -> int:
        """Return the place of a step's period."""
        return self.places[t - self.start] if self.by else 0

    def of_state(self, k: int) -> int:
        """Return the place of a state's period: of the step that led to it, or the first."""
        return self.of_step(max(k - 1, self.start))

    @property
    def of_steps(self) -> list[int]:
        """The label of each step's period; empty if nothing is divided."""
        return [self.labels[place] for place in self.places]


def _names(log: RunLog, by: str | int, steps: range) -> list[int]:
    """Return the label of each step's period."""
    if isinstance(by, str) and by == EPOCH:
        return epochs(log, 'by="epoch"')[steps.start : steps.stop]
    if isinstance(by, str) and by == STEP:
        return list(steps)
    if isinstance(by, str):
        raise InputError(f'by must be "{EPOCH}", "{STEP}" or a number of steps, found {shown(by)}.')
    size = whole("by", by)
    return [t - (t - steps.start) % size for t in steps]
