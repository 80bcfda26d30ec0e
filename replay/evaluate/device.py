"""Checks that a device exists and computes in float64."""

from __future__ import annotations

from textwrap import shorten

import torch

from tracer.errors import InputError, shown


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that computes in float64, in which values and sums are taken.

    Raises:
        InputError: It is no such device, or this machine has none; names those it has.
    """
    try:
        if not isinstance(device, (str, torch.device)):
            raise TypeError("a device has a name")
        found = torch.device(device)
        torch.ones(1, dtype=torch.float64, device=found).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        usable = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        reason = shorten(str(error).rstrip("."), 90, placeholder=" ...")
        named = repr(str(device)) if isinstance(device, torch.device) else shown(device)
        raise InputError(
            f"expected a device that computes in float64 (this machine has {', '.join(usable)}), "
            f"found {named}: {reason}."
        ) from error
    return found
