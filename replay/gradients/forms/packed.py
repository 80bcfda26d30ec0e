"""Per-example gradients as tensors, numbers and texts, for files that hold nothing else."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from replay.gradients.forms.convolution import Convolved, Geometry
from replay.gradients.forms.dense import Dense
from replay.gradients.forms.lookup import Lookup
from replay.gradients.forms.outer_products import OuterProducts
from replay.gradients.forms.per_example import PerExample
from replay.gradients.forms.sum import Sum

_KINDS = {one.__name__: one for one in (Convolved, Dense, Geometry, Lookup, OuterProducts, Sum)}
_KIND = "kind"


def packed(found: PerExample) -> dict[str, Any] | None:
    """Return stored gradients in lists and dictionaries; None if some are computed when needed."""
    if found.complete:
        return None
    forms = {name: _packed(form) for name, form in found.forms.items()}
    return {"losses": found.losses, "forms": forms, "total": found.total}


def unpacked(known: dict[str, Any]) -> PerExample:
    """Return what ``packed`` was given."""
    forms = {name: _unpacked(form) for name, form in known["forms"].items()}
    return PerExample(known["losses"], forms, known["total"])


def _packed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_packed(one) for one in value]
    if type(value).__name__ in _KINDS:
        parts = {one.name: _packed(getattr(value, one.name)) for one in fields(value)}
        return {_KIND: type(value).__name__, **parts}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_unpacked(one) for one in value)
    if isinstance(value, dict):
        parts = {name: _unpacked(one) for name, one in value.items()}
        return _KINDS[parts.pop(_KIND)](**parts)
    return value
