"""Checks that a device exists and computes in float64."""

from __future__ import annotations

from textwrap import shorten

import torch

from tracer.errors import InputError


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that computes in float64, in which values and sums are taken.

    Raises:
        InputError: It is no such device, or this machine has none; names those it has.
    """
    try:
        found = torch.device(device)
        torch.ones(1, dtype=torch.float64, device=found).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        usable = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        reason = shorten(str(error).rstrip("."), 90, placeholder=" ...")
        raise InputError(
            f"expected a device that computes in float64 (this machine has {', '.join(usable)}), "
            f"found {str(device)!r}: {reason}."
        ) from error
    return found
