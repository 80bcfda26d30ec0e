"""The methods that ``Replay.influence`` computes, one row each, in the order of the tables."""

from __future__ import annotations

from collections.abc import Iterable

from replay.methods import ideal, paper, tracin, tracincp, unrolled
from replay.methods.method import Method

METHODS: dict[str, Method] = {
    one.METHOD.name: one.METHOD for one in (tracin, ideal, tracincp, paper, unrolled)
}
DEFAULT: tuple[str, ...] = tuple(name for name, method in METHODS.items() if method.default)


def reference(names: Iterable[str]) -> str:
    """Return the method that others are compared with: one that divides what was measured.

    Where there is none, it is the first.
    """
    known = list(names)
    return next((name for name in known if name in METHODS and METHODS[name].measured), known[0])
