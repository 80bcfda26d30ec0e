"""Where each tensor lies in a flat byte row, and the table that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

Row: TypeAlias = NDArray[np.uint8]

_NOTHING: Row = np.zeros(0, np.uint8)
_DEEPEST = 64  # dimensions that torch computes with


@dataclass(frozen=True)
class Field:
    """One tensor in a flat byte row."""

    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.offset + self.nbytes


def fields(tensors: Mapping[str, Tensor]) -> list[Field]:
    """Lay tensors out one after the other, each aligned to its element size."""
    found, offset = [], 0
    for name, tensor in tensors.items():
        size = tensor.dtype.itemsize
        field = Field(name, -(-offset // size) * size, tuple(tensor.shape), tensor.dtype)
        found.append(field)
        offset = field.end
    return found


def row_bytes(layout: Sequence[Field]) -> int:
    """Return the length of a row."""
    return max((field.end for field in layout), default=0)


def shapes(layout: Sequence[Field]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of each tensor, by name."""
    return {field.name: (torch.Size(field.shape), field.dtype) for field in layout}


def views(row: Tensor, layout: Sequence[Field]) -> list[Tensor]:
    """Return tensors that share a byte row's memory."""
    return [
        row[field.offset : field.end].view(field.dtype).view(field.shape)
        if field.nbytes
        else torch.empty(field.shape, dtype=field.dtype, device="cpu")
        for field in layout
    ]


def pack(tensors: Mapping[str, Tensor]) -> Row:
    """Return tensors as one flat byte row, in order."""
    if not tensors:
        return _NOTHING
    layout = fields(tensors)
    row = torch.zeros(row_bytes(layout), dtype=torch.uint8, device="cpu")
    for view, tensor in zip(views(row, layout), tensors.values(), strict=True):
        view.copy_(tensor.detach())
    return row.numpy()


def joined(rows: Sequence[Row]) -> list[NDArray[np.uint8]]:
    """Return rows as blocks, ``(n, bytes)``: those that follow each other in memory are one view.

    Args:
        rows: All of one length, contiguous; whoever calls keeps them.
    """
    places = [row.__array_interface__["data"][0] for row in rows]
    starts = [
        k for k in range(len(rows)) if not k or places[k] != places[k - 1] + rows[k - 1].nbytes
    ]
    return [
        as_strided(rows[k], (end - k, len(rows[k])), (rows[k].nbytes, 1), writeable=False)
        for k, end in pairwise([*starts, len(rows)])
    ]


def unpack(row: Row, layout: Sequence[Field]) -> dict[str, Tensor]:
    """Return the tensors of a flat byte row, which share its memory."""
    names = (field.name for field in layout)
    return dict(zip(names, views(torch.from_numpy(row), layout), strict=True))


def layout_dtype(longest: int, deepest: int) -> np.dtype[Any]:
    """Return the type of a layout's rows, for names of so many bytes and so many dimensions."""
    return np.dtype(
        [
            ("name", f"S{longest}"),
            ("offset", "<i8"),
            ("dims", "<i8"),
            ("shape", "<i8", (deepest,)),
            ("dtype", "S16"),
        ]
    )


def layout_table(layout: Sequence[Field]) -> NDArray[Any]:
    """Return a layout as rows; names are UTF-8 of the longest one's length."""
    longest = max([len(field.name.encode()) for field in layout], default=1)
    deepest = max([len(field.shape) for field in layout], default=0)
    table = np.zeros(len(layout), layout_dtype(longest, max(1, deepest)))
    for row, field in zip(table, layout, strict=True):
        row["name"], row["offset"] = field.name.encode(), field.offset
        row["dims"], row["shape"][: len(field.shape)] = len(field.shape), field.shape
        row["dtype"] = dtype_name(field.dtype).encode()
    return table


def read_layout(table: NDArray[Any], width: int) -> list[Field]:
    """Return what ``layout_table`` was given.

    Raises:
        ValueError: A tensor is not inside a row of ``width`` bytes, or a name comes twice.
    """
    _require_plausible(table, width)
    found = []
    for row in table:
        dims = int(row["dims"])
        shape = tuple(int(n) for n in row["shape"][:dims])
        dtype = torch_dtype(row["dtype"].decode())
        field = Field(row["name"].decode(), int(row["offset"]), shape, dtype)
        inside = len(shape) == dims and min((*shape, field.offset), default=0) >= 0
        if not inside or field.end > width:
            raise ValueError(f"tensor {field.name!r} lies outside its row")
        found.append(field)
    return found


def _require_plausible(table: NDArray[Any], width: int) -> None:
    """Raise ValueError for what no model has, before an object is made of every row."""
    dims, shape = table["dims"][:, None], table["shape"]
    if (dims > _DEEPEST).any():
        raise ValueError(f"a tensor has {dims.max()} dimensions")
    empty = ((shape == 0) & (np.arange(shape.shape[1]) < dims)).any(1)
    if len(table) - empty.sum() > width:
        raise ValueError(f"{len(table)} tensors cannot lie in a row of {width} bytes")
    if len(np.unique(table["name"])) < len(table):
        raise ValueError("two tensors have one name")


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Return ``torch.float32`` for ``"float32"``."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype
