"""What of a trainer cannot be traced is said by name, before it trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tracer.errors import TracingError

Case = tuple[Any, str, str]  # whether it was found, what it is, what to do

ONE_DEVICE = "Train in one process, on one device"


def refuse(whose: str, cases: Iterable[Case]) -> None:
    """Raise TracingError if a trainer does what cannot be traced.

    Args:
        whose: The trainer's name.
        cases: What it may do.
    """
    for found, what, remedy in cases:
        if found:
            raise TracingError(f"{whose} {what}, which cannot be traced.\n1. {remedy}.")
