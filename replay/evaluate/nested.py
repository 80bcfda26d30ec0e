"""Examples and batches as they come, tensors in containers: moved, copied, measured, summed up."""

from __future__ import annotations

import copy
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)
_BESIDE = 600  # bytes of a tensor or array beside its numbers, of small ones most of it


def moved(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Return a batch on a device, its floating-point tensors in ``dtype`` if one is given."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        wanted = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        return leaf.to(device=device, dtype=wanted)

    return _mapped(batch, move)


def fresh(batch: Any, *, deep: bool = True) -> Any:
    """Return a copy that may be changed in place; what cannot be copied is shared.

    Args:
        batch: Tensors, arrays and others in containers.
        deep: Copy objects of other libraries, too.
    """
    known: dict[int, Any] = {}  # what stands twice stays one thing

    def own(leaf: Any) -> Any:
        if isinstance(leaf, _PLAIN):
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = _copied(leaf, deep=deep)
        return known[id(leaf)]

    return _mapped(batch, own)


def _copied(leaf: Any, *, deep: bool) -> Any:
    if isinstance(leaf, Tensor):  # copy.deepcopy would copy all that a view is a part of
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    try:
        return copy.deepcopy(leaf) if deep or isinstance(leaf, np.ndarray) else leaf
    except Exception:  # files, locks, generators
        return leaf


def _mapped(batch: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return _rebuilt(batch, {k: _mapped(v, change) for k, v in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_mapped(v, change) for v in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_mapped(v, change) for v in batch)
    if _holds_tensors(batch):
        clone = copy.copy(batch)
        if callable(getattr(clone, "apply", None)):  # of graphs, whose tensors lie deeper
            return clone.apply(change)
        for name, value in _fields(batch):
            object.__setattr__(clone, name, _mapped(value, change))  # it may be frozen
        return clone
    return change(batch)


def _holds_tensors(batch: Any) -> bool:
    """Return whether an object is a batch of a class of its own."""
    if isinstance(batch, (Tensor, nn.Module, type, *_PLAIN)):
        return False
    if is_dataclass(batch) or callable(getattr(batch, "to", None)):
        return True
    return any(isinstance(value, Tensor) for value in getattr(batch, "__dict__", {}).values())


def _fields(batch: Any) -> list[tuple[str, Any]]:
    names = {field.name: None for field in fields(batch)} if is_dataclass(batch) else {}
    return [(k, getattr(batch, k)) for k in {**names, **getattr(batch, "__dict__", {})}]


def _rebuilt(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(original) is dict or not hasattr(original, "update"):
        return items
    clone = copy.copy(original)
    clone.update(items)
    return clone


def shape(example: Any) -> Any:
    """Return what tells examples of different lengths apart; None where that is unknown."""
    if isinstance(example, Tensor) and example.is_nested:
        return None
    if isinstance(example, (Tensor, np.ndarray)):
        return tuple(example.shape)
    if isinstance(example, (str, bytes)):
        return len(example)
    if isinstance(example, (*_PLAIN, np.generic)):
        return ()
    if isinstance(example, Mapping):
        items = [(key, shape(value)) for key, value in example.items()]
        return None if any(found is None for _, found in items) else tuple(items)
    if isinstance(example, (list, tuple)):
        parts = [shape(value) for value in example]
        return None if None in parts else tuple(parts)
    return None


def nbytes_of(batch: Any) -> int:
    """Return the bytes of what is known to take any."""
    sizes: dict[int, int] = {}

    def count(leaf: Any) -> Any:
        known = _parts(leaf) if isinstance(leaf, (Tensor, np.ndarray)) else []
        parts = sum(one.nbytes + _BESIDE for one in known)
        sizes[id(leaf)] = parts or sys.getsizeof(leaf, 0)
        return leaf

    _mapped(batch, count)
    return sum(sizes.values())


def storages(tensor: Tensor) -> dict[int, int]:
    """Return where a tensor lies and how many bytes are there; of one that cannot tell, nothing."""
    found = {}
    for part in _parts(tensor):
        with suppress(RuntimeError, NotImplementedError):
            found[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return found


def _parts(tensor: Any) -> list[Any]:
    """Return the plain tensors that another one is made of, as a jagged one is."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [part for one in inner for part in _parts(one)]


def checksum(example: Any) -> int:
    """Return a checksum of what an example holds; of what is unknown, nothing."""
    found = 0

    def add(leaf: Any) -> Any:
        nonlocal found
        if isinstance(leaf, np.ndarray) and leaf.dtype != object:
            found = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), found)
        elif isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.numel():
            flat = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
            found = zlib.crc32(flat.view(torch.uint8).numpy().data, found)
        elif isinstance(leaf, _PLAIN):
            found = zlib.crc32(repr(leaf).encode(), found)
        return leaf

    _mapped(example, add)
    return found
