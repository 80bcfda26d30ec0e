"""How far a replayed step may be from the logged one, and what to say where it is further."""

from __future__ import annotations

import torch

ENDING = "allow_mismatch=True (--allow-mismatch) goes on and counts the difference as rounding."
_LOOK = (
    "Look at the task (loss, model, data, order, collate), at reduction and weights, at autocast, "
    "at gradients changed before the step other than by one factor (value clipping), at parameters "
    "changed between steps (clamped, averaged, swapped), at the optimizer's state (loaded or "
    "cleared in the middle of the run), and at randomness outside the model: if "
    'training examples are augmented at random, trace with record="batches" and '
    "step(batch_ids=ids, batch=batch), which logs the batches themselves."
)
_OTHER_DTYPE = (
    " This replay computes in another dtype than the run (dtype=, --dtype), in which torch may "
    "draw other random numbers."
)


def advice(same_dtype: bool) -> str:
    """Return what to look at, and how to go on all the same.

    Args:
        same_dtype: Whether the replay computes in the run's dtype.
    """
    return f"{_LOOK}{'' if same_dtype else _OTHER_DTYPE} {ENDING}"


def tolerance(dtype: torch.dtype, same_dtype: bool) -> float:
    """Return the share of a gradient's norm that rounding may make."""
    share = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 5e-2)
    return share + (0.0 if same_dtype else 1e-2)
