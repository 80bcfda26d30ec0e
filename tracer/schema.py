"""Names, dtypes and creation of everything in a run log: the only spelling of the layout.

Parameters lie in one flat byte row per snapshot; what varies lies in sparse tables, each step's
meta row saying which rows are its own. Nothing is a variable-length HDF5 type (their heap is not
safe under SWMR) and nothing is pickled.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

FORMAT = "tracin-run"
FORMAT_VERSION = 1

PARAMETERS = "layout/parameters"
BUFFERS = "layout/buffers"
GROUPS = "groups"
STATE_SCHEMA = "state_schema"
STATUS = "status"
META = "steps/meta"
HYPER = "steps/hyper"
IDS = "steps/ids"
STRINGS = "ids/bytes"
STRING_ENDS = "ids/ends"
COEFFICIENTS = "steps/coef"
MICRO = "steps/micro"
MASKS = "steps/nograd"
WEIGHTS = "steps/w"
SNAP_BUFFERS = "snap/buf"
SNAP_RANDOM = "snap/rng"
SNAP_OPTIMIZER = "snap/opt"

NONE = -1  # "no row": deterministic pass, default coefficients, no epoch
CHUNK = 1 << 20

META_DTYPE = np.dtype(
    [
        ("step", "<i8"),
        ("epoch", "<i8"),
        ("ids", "<i8"),
        ("count", "<i8"),
        ("micro", "<i8"),
        ("micro_count", "<i8"),
        ("hyper", "<i8"),
        ("groups", "<i8"),
        ("mask", "<i8"),
        ("buffers", "<i8"),
        ("buffers_after", "<i8"),
        ("gradient_norm", "<f8"),
        ("clip_factor", "<f8"),
        ("parameters_crc", "<u4"),
        ("parameters_after_crc", "<u4"),
        ("record_crc", "<u4"),
    ]
)
MICRO_DTYPE = np.dtype([("ids", "<i8"), ("count", "<i8"), ("coef", "<i8"), ("rng", "<i8")])
GROUP_DTYPE = np.dtype([("step", "<i8"), ("group", "<i8"), ("parameter", "<i8")])
STATE_DTYPE = np.dtype(
    [
        ("step", "<i8"),
        ("parameter", "<i8"),
        ("key", "S64"),
        ("dtype", "S16"),
        ("shape", "<i8", (8,)),
        ("dims", "<i8"),
        ("offset", "<i8"),
        ("bytes", "<i8"),
    ]
)
STATUS_DTYPE = np.dtype([("steps", "<i8"), ("closed", "<i8"), ("strings", "<i8")])


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
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def fields(tensors: dict[str, torch.Tensor]) -> list[Field]:
    """Lay tensors out one after the other."""
    found, offset = [], 0
    for name, tensor in tensors.items():
        field = Field(name, offset, tuple(tensor.shape), tensor.dtype)
        found.append(field)
        offset += field.nbytes
    return found


def row_bytes(layout: Sequence[Field]) -> int:
    """Return the length of a row."""
    return sum(field.nbytes for field in layout)


def shapes(layout: Sequence[Field]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of each tensor, by name."""
    return {field.name: (torch.Size(field.shape), field.dtype) for field in layout}


def layout_table(layout: Sequence[Field]) -> np.ndarray[Any, Any]:
    """Return a layout as rows; names are UTF-8 of the longest one's length."""
    longest = max([len(field.name.encode()) for field in layout], default=1)
    deepest = max([len(field.shape) for field in layout], default=0)
    dtype = np.dtype(
        [
            ("name", f"S{longest}"),
            ("offset", "<i8"),
            ("dims", "<i8"),
            ("shape", "<i8", (max(1, deepest),)),
            ("dtype", "S16"),
        ]
    )
    table = np.zeros(len(layout), dtype)
    for row, field in zip(table, layout, strict=True):
        row["name"], row["offset"] = field.name.encode(), field.offset
        row["dims"], row["shape"][: len(field.shape)] = len(field.shape), field.shape
        row["dtype"] = dtype_name(field.dtype).encode()
    return table


def read_layout(dataset: h5py.Dataset) -> list[Field]:
    """Read what ``layout_table`` made."""
    return [
        Field(
            row["name"].decode(),
            int(row["offset"]),
            tuple(int(n) for n in row["shape"][: row["dims"]]),
            torch_dtype(row["dtype"].decode()),
        )
        for row in dataset[:]
    ]


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Return ``torch.float32`` for ``"float32"``."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def create(
    file: h5py.File,
    parameters: Sequence[Field],
    buffers: Sequence[Field],
    *,
    hyperparameters: Sequence[str],
    random_bytes: int,
    attributes: dict[str, Any],
) -> None:
    """Create every object of an empty log; nothing is created afterwards."""
    file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
    file.attrs.update(attributes)
    file.attrs["hyperparameters"] = "\n".join(hyperparameters)
    for name, layout in ((PARAMETERS, parameters), (BUFFERS, buffers)):
        file.create_dataset(name, data=layout_table(layout))
    file.create_dataset(STATUS, data=np.zeros(1, STATUS_DTYPE))
    tables = {META: META_DTYPE, MICRO: MICRO_DTYPE, GROUPS: GROUP_DTYPE, STATE_SCHEMA: STATE_DTYPE}
    for name, dtype in tables.items():
        file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(256,))
    flat = {IDS: "<i8", COEFFICIENTS: "<f8", STRINGS: "u1", STRING_ENDS: "<i8"}
    for name, kind in flat.items():
        file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(4096,))
    file.create_dataset(SNAP_OPTIMIZER, (0,), "u1", maxshape=(None,), chunks=(CHUNK,))
    _rows(file, HYPER, len(hyperparameters), "<f8")
    _rows(file, MASKS, 2 * len(parameters), "u1")
    _rows(file, WEIGHTS, row_bytes(parameters), "u1")
    _rows(file, SNAP_BUFFERS, row_bytes(buffers), "u1")
    _rows(file, SNAP_RANDOM, random_bytes, "u1")


def _rows(file: h5py.File, name: str, width: int, kind: str) -> None:
    """Create a table of rows in balanced chunks of about 1 MiB."""
    width = max(1, width)
    pieces = -(-width * np.dtype(kind).itemsize // CHUNK)
    columns = -(-width // pieces)
    rows = max(1, min(256, CHUNK // (columns * np.dtype(kind).itemsize)))
    rows = 1 if name == WEIGHTS else rows
    file.create_dataset(name, (0, width), kind, maxshape=(None, width), chunks=(rows, columns))


def record_crc(meta: NDArray[Any], parts: Iterable[bytes]) -> int:
    """Return the CRC of a meta row and of everything small that it stands for."""
    blank = meta.copy()
    blank["record_crc"] = 0
    crc = zlib.crc32(blank.tobytes())
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def record_parts(file: h5py.File, meta: NDArray[Any]) -> Iterator[bytes]:
    """Read what a meta row stands for, in the order of its CRC."""
    row = meta[0]
    micro = file[MICRO][row["micro"] : row["micro"] + row["micro_count"]]
    for batch in micro:
        rows = slice(batch["ids"], batch["ids"] + batch["count"])
        yield file[IDS][rows].tobytes()
        yield file[COEFFICIENTS][batch["coef"] : batch["coef"] + batch["count"]].tobytes()
        yield b"" if batch["rng"] < 0 else file[SNAP_RANDOM][batch["rng"]].tobytes()
    yield micro.tobytes()
    yield file[HYPER][row["hyper"] : row["hyper"] + row["groups"]].tobytes()
    for name, number in (
        (MASKS, row["mask"]),
        (SNAP_BUFFERS, row["buffers"]),
        (SNAP_BUFFERS, row["buffers_after"]),
    ):
        yield b"" if number < 0 else file[name][number].tobytes()
