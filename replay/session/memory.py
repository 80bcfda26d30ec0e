"""How much memory a replay may take, and how it cuts temporaries: the last bits depend on that."""

from __future__ import annotations

from pathlib import Path

from tracer.errors import InputError

MEMORY = "memory by which temporaries are cut"  # in the question of finished parts
_MOST = 2 << 30  # bytes that make a difference in a job: temporaries have no use for more


class Memory:
    """The budget of one replay.

    Args:
        given: Bytes for activations and gradients.

    Attributes:
        given: As given.
        cuts: Bytes by which temporaries are cut: what is given, or what a job began with.
    """

    def __init__(self, given: int) -> None:
        self.given = self.cuts = given

    def begin(self) -> None:
        """Cut as all jobs do whose processes have enough."""
        self.cuts = min(self.given, _MOST)

    def keep(self, cuts: int, parts: Path) -> None:
        """Cut as a job began.

        Raises:
            InputError: The memory given is not enough for it.
        """
        if cuts > self.given:
            raise not_held(parts, f"a memory of {cuts:,} bytes or more", f"is {self.given:,}")
        self.cuts = cuts


def not_held(parts: Path | None, begun: str, held: str) -> InputError:
    """Return the error of a process that has less memory than its job began with."""
    return InputError(
        f"{parts} was begun with {begun}, and the memory given {held}.\n"
        "1. Give as much as before: memory=, --memory.\n"
        "2. To begin anew, remove that folder."
    )
