"""Warnings for forward passes that hooks cannot see."""

from __future__ import annotations

COMPILED = (
    "the model runs inside torch.compile, where the wrapper cannot see it: random state and "
    "buffers before its forward are not logged, and a run with dropout does not replay. Give the "
    "wrapper what torch.compile returned, or call model.compile() before the wrapper is made."
)
BY_METHOD = (
    "the wrapper did not see a forward of the model before this step: a method or a part of the "
    "model was called instead. Its buffers are logged as they are after the step, and random state "
    "is not logged. Call model(...) for what the training loss needs."
)
