"""What is said where a run cannot be taken again otherwise."""

from __future__ import annotations

from replay.states.environment import differences
from tracer.errors import MismatchError, UnsupportedRuleError
from tracer.log.read.run_log import RunLog
from tracer.records import Step


def clipped_apart(step: Step) -> UnsupportedRuleError:
    """Return the error for a step whose gradients were not clipped all together."""
    return UnsupportedRuleError(
        f"step {step.index} clipped the gradients of groups, of parameters or of elements by "
        "themselves, and what that does to another gradient is not in the log.\n"
        "  1. Clip all gradients together, optimizer.clip_grad_norm_(...), and train again;\n"
        "  2. or ask for influence, which needs no counterfactual run."
    )


def not_the_run(log: RunLog, t: int, what: str) -> MismatchError:
    """Return the error for a run that, taken again as it was, comes out otherwise.

    Args:
        log: The run.
        t: The first step that does.
        what: Is not what it was.
    """
    path = log.path
    why = "; ".join(differences(log.metadata))
    here = f" This process differs: {why}." if why else ""
    return MismatchError(
        f"step {t} of {path}, taken again with nothing removed, does not lead to {what} of the "
        f"run to the last bit, so a counterfactual of it would be another run's.{here}\n"
        f"1. Compute where the run did, or as it did: match_environment=True "
        "(--match-environment).\n"
        f"2. Look for the cause: tracin-replay verify {path} names steps that do not reproduce.\n"
        "3. Compare with the run as it comes out here: allow_mismatch=True (--allow-mismatch)."
    )
