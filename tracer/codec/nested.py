"""Nested tuples, lists and dicts of tensors and plain values as bytes: data, never code.

The bytes are the length of a JSON header (8 bytes, little-endian), the header, zeros up to a
multiple of 8, then the tensors. In the header a tensor is its dtype, shape and offset, and the
order in which its dimensions lie in memory if that is another: products of the same numbers differ
in their last bit where it does.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracer.codec.dense import kind
from tracer.codec.layout import dtype_name, torch_dtype
from tracer.codec.wrapped import Wrapped, wrapped

_ALIGN = 8
_LARGEST = 1 << 22  # values in a header: of each comes an object
_BITS = 8192  # of a whole number: Python reads no more than 4300 digits
_NUMPY = [np.dtype(f"{kind}{size}") for kind in "iuf" for size in (2, 4, 8)]
_NUMPY += [np.dtype(name) for name in ("?", "i1", "u1")]


class NestedError(ValueError):
    """A value cannot be stored, or bytes are no stored value."""


def encode(value: Any, called: str) -> bytes:
    """Return a nested value as bytes.

    Args:
        value: Tensors, numpy arrays, dtypes, None, bool, int, float, str in dicts, lists and
            tuples. Tensors that wrap dense ones come back as ``Wrapped``.
        called: What messages call it.

    Raises:
        NestedError: Something in it is of another type; says where.
    """
    arrays: list[bytes] = []
    try:
        header = json.dumps(_describe(value, called, arrays, [0])).encode()
    except NestedError:
        raise
    except Exception as error:  # an own class may do anything, a dict may hold itself
        raise NestedError(f"{called} cannot be stored: {type(error).__name__}: {error}") from error
    if _parts(header) > _LARGEST:
        raise NestedError(
            f"{called} has {_parts(header)} values; a log stores at most {_LARGEST}, and many "
            "numbers in tensors."
        )
    start = len(header).to_bytes(8, "little") + header
    return b"".join([start, bytes(-len(start) % _ALIGN), *arrays])


def _describe(value: Any, where: str, arrays: list[bytes], end: list[int]) -> Any:
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int and value.bit_length() <= _BITS:
        return value
    known = isinstance(value, (np.ndarray, np.generic)) and value.dtype.newbyteorder("=") in _NUMPY
    if isinstance(value, np.generic) and known:
        return value.item()  # a schedule computed by numpy
    if isinstance(value, np.ndarray) and known:
        native = value.astype(value.dtype.newbyteorder("="), order="C")  # a copy: writeable
        node = _describe(torch.from_numpy(native), where, arrays, end)
        return {"array": node["tensor"]}
    if isinstance(value, Tensor) and kind(value) == "dense":
        order = _order(value)
        plain = value.detach().cpu().resolve_conj().resolve_neg().permute(order)
        flat = plain.contiguous().flatten()
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        turned = [] if order == sorted(order) else [order]
        node = {"tensor": [dtype_name(value.dtype), list(plain.shape), end[0], *turned]}
        arrays.append(data + bytes(-len(data) % _ALIGN))
        end[0] += len(arrays[-1])
        return node
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if (found := wrapped(value)) is not None:
        inner = [_describe(v, where, arrays, end) for v in (found.tensors, found.context)]
        return {"wrapped": [found.kind, *inner]}
    if type(value) in (list, tuple):
        nodes = [_describe(v, f"{where}[{k}]", arrays, end) for k, v in enumerate(value)]
        return {type(value).__name__: nodes}
    if isinstance(value, dict) and all(type(key) in (int, str) for key in value):
        pairs = [[k, _describe(v, f"{where}[{k!r}]", arrays, end)] for k, v in value.items()]
        return {"dict": pairs}
    raise NestedError(
        f"{where} is {_called(value)}; a log stores dense tensors, arrays, numbers, text and None, "
        "in dicts (keys int or str), lists and tuples."
    )


def _order(value: Tensor) -> list[int]:
    """Return how dimensions lie in memory, outermost first, if they do so without gaps."""
    usual = list(range(value.dim()))
    found = sorted(usual, key=value.stride, reverse=True)
    gapless = not value.is_contiguous() and value.permute(found).is_contiguous()
    return found if gapless else usual


def _called(value: Any) -> str:
    """Return what messages call a value that cannot be stored."""
    name = type(value).__name__
    if type(value) is int:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, Tensor):
        found = kind(value)
        return f"a {found}{'' if found == name else ' tensor'} of {value.dtype}"
    return f"a {name} of {value.dtype}" if isinstance(value, np.ndarray) else f"a {name}"


def decode(data: bytes) -> Any:
    """Return what ``encode`` was given; tensors are on the CPU.

    Raises:
        NestedError: The bytes are no such thing.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        if size > len(data) - 8:
            raise NestedError("the header is longer than the data")
        header = data[8 : 8 + size]
        if _parts(header) > _LARGEST:
            raise NestedError(f"the header has {_parts(header)} values, at most {_LARGEST} can be")
        start = 8 + size + (-(8 + size) % _ALIGN)
        return _build(json.loads(header), memoryview(data)[start:], [0])
    except NestedError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError) as error:
        raise NestedError(f"not a stored value: {error}") from error


def _parts(header: bytes) -> int:
    """Return at least how many objects a header becomes, before it is read."""
    return sum(map(header.count, (b",", b"[", b"{")))


def _build(node: Any, data: memoryview, end: list[int]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, inner),) = node.items()
    if kind == "tensor":
        return _tensor(inner, data, end)
    if kind == "array":
        return _tensor(inner, data, end).numpy()
    if kind == "dtype":
        return torch_dtype(inner)
    if kind == "wrapped":
        tensors, context = (_build(one, data, end) for one in inner[1:])
        return Wrapped(str(inner[0]), dict(tensors), tuple(context))
    if kind == "dict":
        return {key: _build(value, data, end) for key, value in inner}
    if kind not in ("list", "tuple"):
        raise NestedError(f"unknown kind {kind!r}")
    values = [_build(value, data, end) for value in inner]
    return values if kind == "list" else tuple(values)


def _tensor(described: Any, data: memoryview, end: list[int]) -> Tensor:
    name, shape, offset, *order = described
    dtype = torch_dtype(name)
    size = math.prod(shape) * dtype.itemsize
    if min((*shape, offset), default=0) < 0 or offset + size > len(data):
        raise NestedError("a tensor lies outside the data")
    if offset < end[0]:  # what is named twice would be in memory twice
        raise NestedError("two tensors share bytes")
    end[0] = offset + size
    raw = bytearray(data[offset : offset + size])
    bytes_ = torch.frombuffer(raw, dtype=torch.uint8) if size else torch.empty(0, device="cpu")
    found = bytes_.view(dtype).reshape(shape) if size else bytes_.to(dtype).reshape(shape)
    return found.permute([list(order[0]).index(k) for k in range(len(shape))]) if order else found
