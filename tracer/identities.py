"""IDs of examples, by one rule for logs, data sets and results: 64-bit integers, or text.

Text is what UTF-8 and HDF5 hold: no half characters (surrogates), no NUL, which would end it. The
IDs of a batch, or along a dimension of a result, are of one type: ``0`` and ``"0"`` are two IDs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tracer.errors import shown
from tracer.records import ID

_FIRST, _LAST = -(2**63), 2**63 - 1


def plain_id(value: Any) -> ID | None:
    """Return the Python integer or text that an ID is; None for what is neither."""
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass, an enumeration's too, the text itself
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return int(value.__index__())
    except TypeError:
        return None


def plain_ids(values: Iterable[Any]) -> list[Any]:
    """Return IDs as ``plain_id`` gives them, and what is none as it is: ``fault_of`` names it."""
    found = ((plain_id(value), value) for value in values)
    return [value if plain is None else plain for plain, value in found]


def fault_of(ids: Iterable[Any]) -> str:
    """Return why IDs cannot be stored together, as ``found ...``; nothing if they can."""
    listed: Sequence[Any] = list(ids)
    kinds = set(map(type, listed))
    if kinds == {int}:
        least, most = min(listed), max(listed)
        wrong = most if most > _LAST else least
        return "" if _FIRST <= wrong <= _LAST else f"found {shown(wrong)}, more than 64 bits"
    if kinds == {str}:
        return next((fault for text in listed if (fault := _fault_of_text(text))), "")
    if kinds == {int, str}:
        first = {kind: next(one for one in listed if type(one) is kind) for kind in (int, str)}
        return f"found integers and text, {shown(first[int])} and {shown(first[str])}"
    wrong = next((one for one in listed if type(one) not in (int, str)), None)
    return f"found {shown(wrong)} of type {type(wrong).__name__}" if listed else ""


def _fault_of_text(text: str) -> str:
    if text.isascii():
        return f"found {shown(text)}, with a NUL" if "\0" in text else ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"found {shown(text)}, with half a character"
    return f"found {shown(text)}, with a NUL" if "\0" in text else ""
