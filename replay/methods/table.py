"""The methods that ``Replay.influence`` computes, one row each, in the order of the tables."""

from __future__ import annotations

from replay.methods import ideal, paper, tracin, tracincp, unrolled
from replay.methods.method import Method

METHODS: dict[str, Method] = {
    one.METHOD.name: one.METHOD for one in (tracin, ideal, tracincp, paper, unrolled)
}
DEFAULT: tuple[str, ...] = tuple(name for name, method in METHODS.items() if method.default)
