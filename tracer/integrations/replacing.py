"""Methods of a trainer's objects that are replaced for a run, and put back after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Replaced:
    """What stands in for methods until it is taken off."""

    def __init__(self) -> None:
        self._all: list[tuple[Any, str, Any, bool]] = []

    def put(self, thing: Any, name: str, function: Callable[..., Any]) -> None:
        """Replace a method by a function that gets it, and then what it is given."""
        before, own = getattr(thing, name), name in vars(thing)
        self._all.append((thing, name, before, own))
        setattr(thing, name, lambda *args, **named: function(before, *args, **named))

    def take_off(self) -> None:
        """Put all back, the last one first."""
        for thing, name, before, own in reversed(self._all):
            if own:
                setattr(thing, name, before)
            else:
                vars(thing).pop(name, None)
        self._all = []
