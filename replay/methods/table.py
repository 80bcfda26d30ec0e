"""How the methods compute: one row each, in the order of their names."""

from __future__ import annotations

from replay.methods import ideal, paper, tracin, tracincp, unrolled
from replay.methods.method import Method
from replay.methods.names import NAMES

_ROWS = {one.METHOD.name: one.METHOD for one in (tracin, ideal, tracincp, paper, unrolled)}
METHODS: dict[str, Method] = {name: _ROWS[name] for name in NAMES}
