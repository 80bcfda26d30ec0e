"""Whether a run reproduces: every step replayed by its whole gradient and compared with the log."""

from __future__ import annotations

import math
from dataclasses import dataclass

from replay.evaluate.proof import Proof
from replay.evaluate.state import States
from replay.steps.tape import Tape
from tracer.errors import UnsupportedRuleError

_ALIKE = 1e-3  # by which factors may differ that are one and the same


@dataclass(frozen=True)
class Verification:
    """Steps that reproduced, all of them.

    Attributes:
        steps: The steps.
        scaled_outside: Those whose gradient was scaled by one factor outside the optimizer
            (clipping that was not logged), with the factor.
        unsplit: The update rule, where only gradients were compared because no replay splits it;
            else None.
        proof: Of steps that were taken again between snapshots; None where all are on file.
    """

    steps: range
    scaled_outside: dict[int, float]
    unsplit: str | None = None
    proof: Proof | None = None

    def __str__(self) -> str:
        where = f"steps {self.steps.start}:{self.steps.stop}"
        found = f"{where} reproduce"
        if self.proof is not None:
            found += f"\n{self.proof}"
        elif self.unsplit is not None:
            found = (
                f"the gradients of {where} reproduce; what {self.unsplit} made of them is not "
                "checked, since its update is not split"
            )
        if not self.scaled_outside:
            return found
        times = f"{len(self.scaled_outside)} of these {len(self.steps)} steps"
        found = f"{found}; in {times} the gradient was scaled outside the optimizer"
        factors = self.scaled_outside.values()
        if len(factors) < len(self.steps) or max(factors) - min(factors) > _ALIKE * max(factors):
            return found
        return (
            f"{found}, by {max(factors):.4g} each time: the run's loss is so many times task.loss"
        )


def verified(tape: Tape, states: States, steps: range) -> Verification:
    """Compare the steps of a tape with the log.

    Raises:
        MismatchError: Names the first step that does not reproduce.
        UnsupportedRuleError: The steps cannot be split, and the log has no norms of gradients.
    """
    unsplit = None if tape.splits else str(states.log.metadata["update_rule"])
    if unsplit and all(math.isnan(g.gradient_norm) for g in states.step(steps.start).groups):
        raise UnsupportedRuleError(
            f"the steps of {states.log.path} were made by {unsplit}, whose update cannot be split, "
            "and this log, of an early version, has no norms of gradients to compare."
        )
    tape.check()
    inside = {t: factor for t, factor in tape.factors.inferred.items() if t in steps}
    return Verification(steps, inside, unsplit, states.proof())
