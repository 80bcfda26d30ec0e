"""Whether a run reproduces: every step replayed by its whole gradient and compared with the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from replay.evaluate.proof import Proof
from replay.evaluate.state import States
from replay.steps.tape import Tape
from tracer.errors import MismatchError, UnsupportedRuleError
from tracer.rules.unsplit import reason

_ALIKE = 1e-3  # by which factors may differ that are one and the same


@dataclass(frozen=True)
class Verification:
    """What comparing steps with the log has found.

    Attributes:
        steps: The steps that reproduce.
        scaled_outside: Those whose gradient was scaled by one factor outside the optimizer
            (clipping that was not logged), with the factor.
        unsplit: The update rule, where only gradients were compared because no replay splits it;
            else None.
        proof: Of steps that were taken again between snapshots; None where all are on file.
        deviation: The largest gap between the norm of a parameter's gradient and the one in the
            log, of the norm of the whole.
        asked: The steps that were to be compared; those that reproduce if there is no ``finding``.
        finding: How the error begins that a step caused; None if all reproduce.
    """

    steps: Sequence[int]
    scaled_outside: dict[int, float]
    unsplit: str | None = None
    proof: Proof | None = None
    deviation: float = math.nan
    asked: Sequence[int] = ()
    finding: str | None = None

    @property
    def first(self) -> int | None:
        """The first step that differs, in a bit of its parameters or beyond tolerance."""
        missed = [] if self.finding is None else [self.asked[len(self.steps)]]
        return min([*missed, *(self.proof.unproved[:1] if self.proof else ())], default=None)

    @property
    def where(self) -> str:
        """The steps that were compared, in words."""
        if isinstance(self.asked, range) and isinstance(self.steps, range):
            return f"steps {self.asked.start}:{self.asked.stop}"
        return f"{len(self.asked)} steps from {self.asked[0]} to {self.asked[-1]}, drawn at random"

    def __str__(self) -> str:
        where = self.where
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


class NotVerified(MismatchError):
    """A step does not reproduce.

    Attributes:
        found: What was found up to it.
    """

    def __init__(self, text: str, found: Verification) -> None:
        super().__init__(text)
        self.found = found


def verified(
    tapes: Iterable[Tape],
    states: States,
    steps: Sequence[int],
    *,
    splits: bool,
    advance: Callable[[], None] = lambda: None,
) -> Verification:
    """Compare the steps of some tapes with the log.

    Args:
        tapes: One for each window of consecutive steps.
        states: The run's states.
        steps: All of these steps, in order.
        splits: Whether the update rule is known, so that moves are compared, too.
        advance: Called after each step.

    Raises:
        NotVerified: Names the first step that does not reproduce.
        UnsupportedRuleError: The steps cannot be split, and the log has no norms of gradients.
    """
    unsplit = None if splits else str(states.log.metadata["update_rule"])
    if unsplit and all(math.isnan(g.gradient_norm) for g in states.step(steps[0]).groups):
        raise UnsupportedRuleError(
            f"the steps of {states.log.path} were made by {unsplit}, whose update cannot be split, "
            "and this log, of an early version, has no norms of gradients to compare."
        )
    inside: dict[int, float] = {}
    found = Verification(steps[:0], inside, unsplit, states.proof(), 0.0, steps)
    for tape in tapes:
        try:
            for t in tape.checks():
                found = replace(found, steps=steps[: len(found.steps) + 1])
                advance()
                if t in tape.factors.inferred:
                    inside[t] = tape.factors.inferred[t]
        except MismatchError as error:
            proof, gap = states.proof(), max(found.deviation, _deviation(tape))
            finding = str(error).partition("\n")[0]
            found = replace(found, proof=proof, deviation=gap, finding=finding)
            text = _with_first(error, proof)
            if unsplit and reason(unsplit):
                text += f"\nThe run was made by {unsplit}{reason(unsplit)}."
            raise NotVerified(text, found) from error
        found = replace(found, deviation=max(found.deviation, _deviation(tape)))
    return replace(found, proof=states.proof())


def _deviation(tape: Tape) -> float:
    """Return the largest deviation of a window's steps; some before it may have been taken."""
    known = tape.factors.deviations
    return max((known.get(t, 0.0) for t in tape.window), default=0.0)


def _with_first(error: MismatchError, proof: Proof | None) -> str:
    if proof is None or not proof.unproved:
        return str(error)
    return (
        f"{error}\nThe first step that is not the run's to the last bit is step "
        f"{proof.unproved[0]}: {'; '.join(proof.reasons)}."
    )
