"""Whether a run reproduces: every step replayed by its whole gradient and compared with the log."""

from __future__ import annotations

from dataclasses import dataclass

from replay.steps.tape import Tape


@dataclass(frozen=True)
class Verification:
    """Steps that reproduced, all of them.

    Attributes:
        steps: The steps.
        scaled_outside: Those whose gradient was scaled by one factor outside the optimizer
            (clipping that was not logged), with the factor.
    """

    steps: range
    scaled_outside: dict[int, float]

    def __str__(self) -> str:
        count = len(self.scaled_outside)
        clipped = f"; the gradient of {count} was scaled outside the optimizer" if count else ""
        return f"steps {self.steps.start}:{self.steps.stop} reproduce{clipped}"


def verified(tape: Tape, steps: range) -> Verification:
    """Compare the steps of a tape with the log.

    Raises:
        MismatchError: Names the first step that does not reproduce.
    """
    tape.check()
    inside = {t: factor for t, factor in tape.factors.inferred.items() if t in steps}
    return Verification(steps, inside)
