"""Which steps a GradScaler skips, since a gradient overflowed.

It asks whether the optimizer takes scaled gradients before it calls ``step``. If it skips the step
it does not call it; an optimizer that takes scaled gradients is called, and does nothing where
``found_inf`` says so.
"""

from __future__ import annotations

from torch.optim import Optimizer


class SkippedSteps:
    """Watches for the steps of a run that are skipped."""

    def __init__(self) -> None:
        self._asked = False

    def scaler_asks(self) -> None:
        """Note that a scaler is about to call ``step``, or to skip it."""
        self._asked = True

    def step_begins(self) -> None:
        """Note that ``step`` was called."""
        self._asked = False

    def take(self) -> bool:
        """Return whether a step was skipped before it was called; only once for each."""
        asked, self._asked = self._asked, False
        return asked

    @staticmethod
    def skipped_inside(optimizer: Optimizer) -> bool:
        """Return whether an optimizer did nothing in its ``step`` that has just returned."""
        found_inf = getattr(optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)
