"""What is said where a model runs that no hook can look at."""

from __future__ import annotations

COMPILED = (
    "the model runs inside torch.compile, so random state and buffers before its forward are not "
    "logged, and a run with dropout does not replay: give the wrapper what torch.compile returned, "
    "or call model.compile() before the wrapper is made."
)
BY_METHOD = (
    "no forward of the model was seen before this step (a method or a part of it was called "
    "instead), so its buffers are logged as they are after it, and random state is not: let "
    "model(...) do what the training loss needs."
)
