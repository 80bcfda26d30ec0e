"""What is said of parameters that changed, and not by a step of the wrapper."""

from __future__ import annotations

from pathlib import Path

_STEP = (
    "call step() of the wrapper, with a closure if the method needs several passes, not the "
    "wrapped optimizer's step() nor methods such as first_step() and second_step()."
)


def without_step(since: str) -> str:
    """Say that steps were taken around the wrapper.

    Args:
        since: Since when they may have been.
    """
    return (
        f"the model's parameters moved {since}, and not by step() of the wrapper: that is not in "
        f"the log.\n1. To log those steps, {_STEP}"
    )


def nothing(log: Path) -> str:
    """Say that a log is closed and no step was taken by the wrapper."""
    return (
        f"the log {log} is closed without a step.\n"
        "1. Call step(batch_ids=ids) of this wrapper, not of the optimizer in it.\n"
        "2. Give the wrapper to whatever steps: scheduler, GradScaler, trainer."
    )


def after(step: int, *, kept: bool) -> str:
    """Say that there were changes behind the last step.

    Args:
        step: That one.
        kept: Whether what it led to is on file.
    """
    result = (
        "the log keeps what that step led to"
        if kept
        else "what that step led to is lost, and a replay will say that it does not reproduce"
    )
    return (
        f"the model's parameters changed after step {step}, the last one, and before the log was "
        f"closed; {result}.\n"
        "1. If best or averaged weights were put back, call optimizer.flush() or close() "
        f"after the last step, before that.\n2. If these were steps, {_STEP}"
    )


def between(step: int) -> str:
    """Say that a replay which takes steps again cannot know of a change.

    Args:
        step: The next one.
    """
    return (
        f"something wrote to the model's parameters before step {step}, and not step() of the "
        "wrapper. This log has a digest of them there, and a replay that takes steps again "
        "does not know of it; if they were put back as they were, all is well.\n"
        "1. Pass snapshot_every=1, which logs the parameters of every step;\n"
        "2. or change them where a replay does, too: in the optimizer's step or in the model."
    )
