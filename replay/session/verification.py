"""Whether a run reproduces: all of some steps, or a sample of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from replay.arguments import whole
from replay.progress import Progress
from replay.session.bound_run import BoundRun
from replay.steps.verify import Verification, verified


def compared(run: BoundRun, steps: range, sample: int | None, shown: Progress) -> Verification:
    """Replay the gradients of some steps and compare the steps with the log.

    Of an optimizer whose update is not split, the gradients are compared.

    Args:
        run: The run.
        steps: Consecutive steps.
        sample: So many of them, drawn at random, the same each time; None is all.
        shown: Where progress is shown.

    Raises:
        MismatchError: Names the first step that does not reproduce.
    """
    splits = run.rule is not None
    chosen, windows = windows_of(steps, sample)
    tapes = (run.tape(one, shown, allow_mismatch=False, splits=splits) for one in windows)
    return verified(tapes, run.states, chosen, splits=splits)


def windows_of(steps: range, sample: int | None) -> tuple[Sequence[int], list[range]]:
    """Return which steps are compared, and the windows of consecutive ones that they are in."""
    if sample is None or whole("sample", sample) >= len(steps):
        return steps, [steps]
    some = tuple(sorted(random.Random(0).sample(steps, sample)))
    return some, [range(t, t + 1) for t in some]
