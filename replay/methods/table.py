"""The methods that ``Replay.influence`` computes, one row each, in the order of the tables."""

from __future__ import annotations

from replay.methods import ideal, paper, tracin, tracincp
from replay.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method for method in (tracin.METHOD, ideal.METHOD, tracincp.METHOD, paper.METHOD)
}
DEFAULT: tuple[str, ...] = tuple(name for name, method in METHODS.items() if method.default)
