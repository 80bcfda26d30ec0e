"""How much of a run that was taken again is the run's own, bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """What re-execution found.

    Attributes:
        proved: How many steps led to the parameters whose digest the log has.
        unproved: The steps that did not, in order.
        drift: The largest distance from a snapshot that was missed, relative to the way from the
            snapshot before; 0 if none was.
        causes: How this process differs from the one that trained.
        shows: What the first step that is not proved shows; empty if there is none.
    """

    proved: int
    unproved: tuple[int, ...]
    drift: float
    causes: tuple[str, ...]
    shows: str = ""

    @property
    def reasons(self) -> list[str]:
        """Why bits differ; what a step shows counts where the environment is the run's."""
        if not self.unproved:
            return []
        return [*self.causes] or [self.shows]

    @property
    def facts(self) -> dict[str, int | float]:
        """What a result says of it."""
        first = {"first_step_not_proved": self.unproved[0]} if self.unproved else {}
        return {
            "steps_proved": self.proved,
            "steps_not_proved": len(self.unproved),
            **first,
            "largest_drift": self.drift,
        }

    def __str__(self) -> str:
        if not self.unproved:
            return f"{self.proved} steps taken again, each proved bit for bit by its digest"
        why = "; ".join(self.causes) or "its environment is the run's, as far as the log tells"
        return (
            f"{len(self.unproved)} of {self.proved + len(self.unproved)} steps taken again are not "
            f"the run's to the last bit, from step {self.unproved[0]} on. The snapshots were "
            f"missed by at most {self.drift:.2g} of the way between two of them. This process: "
            f"{why}.{f' {self.shows.capitalize()}.' if self.shows and not self.causes else ''}"
        )


def proof_of(
    proved: Collection[int],
    unproved: Collection[int],
    drift: Mapping[int, float],
    causes: Collection[str],
    shows: str = "",
) -> Proof:
    """Return what was found of some steps."""
    largest = max(drift.values(), default=0.0)
    return Proof(len(proved), tuple(sorted(unproved)), largest, tuple(causes), shows)
