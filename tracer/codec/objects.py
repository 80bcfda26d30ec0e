"""Batches that are objects, as plain containers and back: data, never code.

An object of a class that adds nothing to how Python copies objects is its class's name, its items
and its attributes. It is put together without calling anything of the class, which has to be
imported already: nothing is imported for a log.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, UserDict
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor

from tracer.codec.nested import NestedError
from tracer.errors import TaskError

_MARK = "\0object"  # key of [class, items, attributes]
_LEAVES = (bool, int, float, str, Tensor, np.ndarray, np.generic)


def flattened(value: Any, called: str) -> Any:
    """Return a batch as dicts, lists and tuples of what a log stores.

    Args:
        value: Tensors, arrays, numbers, text and None in containers and simple objects.
        called: What messages call it.

    Raises:
        NestedError: Something in it is of another type; says where.
    """
    if value is None or isinstance(value, _LEAVES):
        return value
    kind = type(value)
    if kind is dict and _MARK not in value:
        return {key: flattened(one, f"{called}[{key!r}]") for key, one in value.items()}
    if kind in (list, tuple):
        return kind(flattened(one, f"{called}[{k}]") for k, one in enumerate(value))
    if not _is_simple(kind):
        raise NestedError(
            f"{called} is a {kind.__name__}; a log stores tensors, arrays, numbers and text in "
            "containers, named tuples, dataclasses and objects of importable classes that have "
            "nothing but attributes."
        )
    items: Any = None
    if isinstance(value, dict):
        items = [[key, flattened(one, f"{called}[{key!r}]")] for key, one in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [flattened(one, f"{called}[{k}]") for k, one in enumerate(value)]
    attributes = getattr(value, "__dict__", {})
    stored = {key: flattened(one, f"{called}.{key}") for key, one in attributes.items()}
    return {_MARK: [_name(kind), items, stored]}


def rebuilt(value: Any) -> Any:
    """Return the batch that ``flattened`` was given.

    Raises:
        TaskError: It holds an object whose class is not imported, or is not simple.
    """
    if type(value) in (list, tuple):
        return type(value)(rebuilt(one) for one in value)
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: rebuilt(one) for key, one in value.items()}
    name, items, attributes = value[_MARK]
    kind = _class(name)
    if kind is None or not _is_simple(kind):
        raise TaskError(
            f"the recorded batch holds a {name}, which is not imported here: import it in the "
            "file of the task."
        )
    found = _made(kind, rebuilt(items))
    if attributes:
        object.__getattribute__(found, "__dict__").update(rebuilt(attributes))
    return found


def _made(kind: Any, items: Any) -> Any:
    """Return an object with its items, calling nothing of its class."""
    if issubclass(kind, tuple):
        return tuple.__new__(kind, items)
    if issubclass(kind, list):
        found = list.__new__(kind)
        list.extend(found, items)
    elif issubclass(kind, OrderedDict):
        found = OrderedDict.__new__(kind)
        for key, one in items:
            OrderedDict.__setitem__(found, key, one)
    elif issubclass(kind, dict):
        found = dict.__new__(kind)
        dict.update(found, items)
    else:
        found = object.__new__(kind)
    return found


def _is_simple(kind: Any) -> bool:
    """Return whether an object is its items and its attributes, and can be found by its name."""
    copies = kind.__module__ != "builtins" and kind.__reduce_ex__ is object.__reduce_ex__
    copies &= kind.__reduce__ in (object.__reduce__, OrderedDict.__reduce__)
    usual = (None, getattr(object, "__getstate__", None))
    own = [getattr(kind, "__getstate__", None) not in usual, hasattr(kind, "__setstate__")]
    more = any(vars(one).get("__slots__") for one in kind.__mro__) or hasattr(kind, "__del__")
    stateless = issubclass(kind, UserDict) or not any(own)
    return copies and stateless and not more and _class(_name(kind)) is kind


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: Any) -> Any:
    """Return the class of a name in a module that is imported, None if there is none."""
    module, _, path = str(name).partition(":")
    try:
        # not getattr: a lazy module would import what it is asked for
        found = reduce(lambda one, key: vars(one)[key], path.split("."), sys.modules[module])
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, type) else None
