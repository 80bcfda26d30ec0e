"""A result in a few lines, as a notebook and ``print`` show it."""

from __future__ import annotations

from collections.abc import Mapping


def summary(title: str, rows: Mapping[str, object]) -> str:
    """Return a title with named lines below it; empty ones are left out."""
    width = max(map(len, rows), default=0)
    lines = (f"  {name:{width}}  {text}" for name, text in rows.items() if text)
    return "\n".join([title, *lines])


def said_of_checkpoints(attributes: Mapping[str, object]) -> str:
    """Return how many states were summed over, and what was asked for if that is not the same."""
    used = str(len(str(attributes.get("checkpoints", "")).split()))
    asked = str(attributes.get("checkpoints_asked", "")) or used
    return used if asked == used else f"{used} ({asked} asked for)"
