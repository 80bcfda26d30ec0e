"""How far a replayed step may be from the logged one, and what to say where it is further."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ANOTHER_DTYPE = (
    "the dtype: this replay computes in another one than the run (dtype=, --dtype), in which torch "
    "may draw other random numbers"
)
_USUAL = (
    "the task: the same loss, model, data, keys, order and collate as in training",
    "reduction= and the weights passed to observe()",
    "autocast: it belongs inside task.loss",
    'random augmentation: trace with record="batches" and step(batch_ids=ids, batch=batch), which '
    "logs the batches themselves",
    "what changes gradients (value clipping), parameters (clamping, averaging, swapping) or the "
    "optimizer's state (loading, clearing) between steps",
)
_ENDING = "To go on and count the difference as rounding: allow_mismatch=True (--allow-mismatch)."


def usual_causes(same_dtype: bool) -> list[str]:
    """Return what to check, likeliest first.

    Args:
        same_dtype: Whether the replay computes in the run's dtype.
    """
    return [*_USUAL] if same_dtype else [_ANOTHER_DTYPE, *_USUAL]


def explained(finding: str, causes: Sequence[str]) -> str:
    """Return a finding of one sentence, then what to check, numbered, and how to go on.

    Args:
        finding: What was expected and found, and where; without a full stop.
        causes: Likeliest first.
    """
    check = "Check, in this order:" if len(causes) > 1 else "Check:"
    numbered = [f"  {k}. {cause}" for k, cause in enumerate(causes, start=1)]
    return "\n".join([f"{finding}.", check, ";\n".join(numbered) + ".", _ENDING])


def tolerance(dtype: torch.dtype, same_dtype: bool) -> float:
    """Return the share of a gradient's norm that rounding may make."""
    share = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 5e-2)
    return share + (0.0 if same_dtype else 1e-2)
