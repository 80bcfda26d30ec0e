"""How far a replayed step may be from the logged one, and what to say where it is further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracer.errors import MismatchError

_PAGE = "docs/does-not-reproduce.md"
_ANOTHER_DTYPE = (
    "the dtype: this replay computes in another one than the run (dtype=, --dtype), in which torch "
    "may draw other random numbers"
)
_TASK = "the task: the same loss, model, data, keys, order and collate as in training"
_OF_GRADIENTS = (
    _TASK,
    "reduction= and the weights passed to observe(), once for each micro-batch",
    'random augmentation, which a replay draws anew: trace with record="batches"',
    "what changes gradients between backward and step (value clipping, noise, hooks)",
)
_OF_MOVES = (
    "what changes parameters (clamping, averaging, swapping) or the optimizer's state (loading, "
    "clearing) between steps",
    _TASK,
)
_ENDING = "To go on and count the difference as rounding: allow_mismatch=True (--allow-mismatch)."


class Mismatch(MismatchError):
    """A step that does not reproduce, and why is to be found out.

    Attributes:
        finding: What was expected and found, and where.
        rest: What is left of each parameter's move; empty where gradients differ.
    """

    def __init__(
        self, finding: str, *, same_dtype: bool, rest: Mapping[str, Tensor] | None = None
    ) -> None:
        self.finding, self.rest = finding, dict(rest or {})
        causes = _OF_MOVES if self.rest else _OF_GRADIENTS
        super().__init__(explained(finding, causes if same_dtype else [_ANOTHER_DTYPE, *causes]))


def state_causes(same_dtype: bool) -> list[str]:
    """Return what to check where the optimizer's state differs, likeliest first.

    Args:
        same_dtype: Whether the replay computes in the run's dtype.
    """
    cause = "what changes the optimizer's state during the run (loading, clearing)"
    return [cause, _TASK] if same_dtype else [_ANOTHER_DTYPE, cause, _TASK]


def gradient_causes() -> Sequence[str]:
    """Return what to check where gradients differ, likeliest first."""
    return _OF_GRADIENTS


def explained(finding: str, causes: Sequence[str]) -> str:
    """Return a finding of one sentence, then what to check, numbered, and how to go on.

    Args:
        finding: What was expected and found, and where; without a full stop.
        causes: Likeliest first.
    """
    check = "Check, in this order:" if len(causes) > 1 else "Check:"
    numbered = [f"  {k}. {cause}" for k, cause in enumerate(causes, start=1)]
    return "\n".join([f"{finding}.", check, ";\n".join(numbered) + ".", _closing("")])


def diagnosed(finding: str, cause: str, remedies: Sequence[str], anchor: str) -> str:
    """Return a finding with the cause that explains it, and remedies.

    Args:
        finding: As for ``explained``.
        cause: One clause.
        remedies: Likeliest first, with their punctuation.
        anchor: Of a section of the page on mismatches.
    """
    numbered = [f"  {k}. {remedy}" for k, remedy in enumerate(remedies, start=1)]
    return "\n".join([f"{finding}.", f"Likely cause: {cause}.", *numbered, _closing(anchor)])


def differently(first: float, second: float) -> tuple[str, str]:
    """Return two numbers with 4 digits or as many as tell them apart."""
    for digits in range(4, 18):
        shown = f"{first:.{digits}g}", f"{second:.{digits}g}"
        if shown[0] != shown[1]:
            break
    return shown


def tolerance(dtype: torch.dtype, same_dtype: bool, coarsest: torch.dtype | None = None) -> float:
    """Return the share of a gradient's norm that rounding may make.

    Where the loss casts (autocast) most roundings are the run's, but not all: weights of examples
    are applied in another order. Half of what one rounding may make is allowed then.

    Args:
        dtype: The parameter's.
        same_dtype: Whether the replay computes in the run's dtype.
        coarsest: To which the loss casts.
    """
    share = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 5e-2)
    if coarsest in (torch.bfloat16, torch.float16):
        share = max(share, torch.finfo(coarsest).eps / 4)
    return share + (0.0 if same_dtype else 1e-2)


def _closing(anchor: str) -> str:
    return f"See {_PAGE}{anchor and '#'}{anchor}. {_ENDING}"
