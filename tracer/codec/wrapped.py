"""Tensors that wrap others, such as quantised states: their parts, without their class's code.

The class is told by name. A log is read without it; who needs such a tensor again has imported it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracer.codec.dense import kind
from tracer.errors import TracingError

_PLAIN = (bool, int, float, str, torch.dtype, type(None))


@dataclass(frozen=True)
class Wrapped:
    """A tensor that wraps others.

    Attributes:
        kind: Module and name of its class.
        tensors: What it wraps, by attribute.
        context: What else it is made of: numbers, text, dtypes, and tuples of them.
    """

    kind: str
    tensors: dict[str, Tensor]
    context: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The class, without its module."""
        return self.kind.rpartition(":")[2]


def wrapped(value: Any) -> Wrapped | None:
    """Return what a tensor wraps; None if it wraps nothing, or more than a log can store."""
    if isinstance(value, Wrapped):
        return value
    if not isinstance(value, Tensor) or kind(value) != type(value).__name__:
        return None
    if not hasattr(value, "__tensor_flatten__") or not hasattr(value, "__tensor_unflatten__"):
        return None
    names, context = value.__tensor_flatten__()
    tensors = {name: getattr(value, name) for name in names}
    plain = all(isinstance(t, Tensor) and kind(t) == "dense" for t in tensors.values())
    known = _tuples(context)
    called = f"{type(value).__module__}:{type(value).__qualname__}"
    return Wrapped(called, tensors, known) if plain and _is_plain(known) else None


def unwrapped(value: Any) -> Any:
    """Return nested values in which tensors that wrap others are ``Wrapped``: these are copied."""
    if isinstance(value, dict):
        return {key: unwrapped(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(unwrapped(one) for one in value)
    found = wrapped(value)
    return value if found is None else found


def rewrapped(value: Any) -> Any:
    """Return nested values with each ``Wrapped`` made a tensor of its class again.

    Raises:
        TracingError: Its class is not imported.
    """
    if isinstance(value, Wrapped):
        return _class(value).__tensor_unflatten__(value.tensors, list(value.context), None, None)
    if isinstance(value, dict):
        return {key: rewrapped(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(rewrapped(one) for one in value)
    return value


def _class(value: Wrapped) -> Any:
    module, _, name = value.kind.partition(":")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if isinstance(found, type) and issubclass(found, Tensor):
        return found
    raise TracingError(
        f"the optimizer's state holds a {name}, whose class is not imported here.\n"
        f"  1. Import {module} before, in the program that resumes or in the task's file."
    )


def _tuples(value: Any) -> Any:
    """Return lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)
