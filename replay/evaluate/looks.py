"""Whether examples may share a pass: looked at in other company, at three states of the run.

The last one is where each example is evaluated alone, since a gate may be closed at first, which
gradients show there. So it is wherever lengths differ, or something decides by numbers (see
``company``): there the company may matter to few examples only. The processes of a job divide the
looks, and all find the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial

from replay.evaluate.certainty import have_same_gradients, have_same_values, require_same_data
from replay.evaluate.companies import apart
from replay.evaluate.company import deciding
from replay.evaluate.state import State, States
from replay.evaluate.test_side import Examples
from replay.processes.alone import Alone
from replay.processes.group import Group
from tracer.errors import NonFiniteError

_FINITE, _SAME, _DECIDES, _ALONE = "finite", "same", "decides", "alone"
_Found = dict[str, bool]


def are_alike(chunks: Sequence[Examples]) -> bool:
    """Return whether all raw examples are known to have the same shapes."""
    seen: set[object] = set()
    for chunk in chunks:
        seen |= chunk.batches.shapes()
        if None in seen or len(seen) > 1:
            return False
    return True


def independent(
    chunks: Sequence[Examples], side: str, states: States, group: Group | Alone
) -> tuple[bool, bool]:
    """Return whether examples do not depend on others, and whether something decides by numbers.

    Args:
        chunks: Those that share passes.
        side: ``"test"`` or ``"train"``, for messages.
        states: The run's.
        group: The processes that divide the looks.

    Raises:
        TaskError: Values are random, or gradients are those of another function.
        NonFiniteError: A value is NaN or infinite at the first state.
    """
    for chunk in chunks:
        require_same_data(chunk)
    points = sorted({0, states.nearest(states.last // 2), states.last}, reverse=True)
    alike, number = are_alike(chunks), zlib.crc32(repr([one.ids for one in chunks]).encode())
    asked = [
        partial(_look, chunks, states, t, f"{side} set, step {t}", turn)
        for turn, t in enumerate(points)
    ]
    name = f"look at {side} {number}"
    first = [partial(one, alone=k == 0 or not alike) for k, one in enumerate(asked)]
    alone = decides = False
    for job, found in zip(asked, group.divided(name, first), strict=True):
        if found[_FINITE] and not (alone or found[_ALONE]):  # a run that diverges later
            (found,) = group.divided(f"{name} alone", [partial(job, alone=True)])
        if not found[_SAME]:
            return False, decides
        alone, decides = alone or found[_ALONE], decides or found[_DECIDES]
    return True, decides


def _look(
    chunks: Sequence[Examples], states: States, t: int, where: str, turn: int, *, alone: bool
) -> _Found:
    """Return what is found at a state; of one that is not finite, who gets there is told."""
    now = states.at(t)
    try:
        decides = len(chunks[0]) > 1 and bool(deciding(chunks[0], now))
        each = decides or alone
        same = all(_is_same(one, now, where, turn, alone=each) for one in chunks)
        if same and (each or t == 0) and len(chunks[0]) > 1:
            same = all(have_same_gradients(one, now, where) for one in chunks)
    except NonFiniteError:
        if t == 0:
            raise
        return {_FINITE: False, _SAME: True, _DECIDES: False, _ALONE: False}
    return {_FINITE: True, _SAME: same, _DECIDES: decides, _ALONE: each}


def _is_same(chunk: Examples, now: State, where: str, turn: int, *, alone: bool) -> bool:
    n = len(chunk)
    company = [[j] for j in range(n)] if alone else apart(n, turn)
    return have_same_values(chunk, now, where, company)
