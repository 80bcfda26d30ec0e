"""Names, dtypes and creation of everything in a run log: the only spelling of the format.

Parameters lie in one flat byte row per snapshot; what varies lies in sparse tables, each step's
meta row saying which rows are its own, with a checksum for each table. Nothing is of a
variable-length HDF5 type (their heap is not safe under SWMR) and nothing is pickled.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tracer.codec.layout import Field, layout_table, row_bytes

FORMAT = "tracin-run"
FORMAT_VERSION = 1

PARAMETERS = "layout/parameters"
BUFFERS = "layout/buffers"
STATUS = "status"
SEGMENTS = "segments"
GROUPS = "groups"
META = "steps/meta"
HYPER = "steps/hyper"
NORMS = "steps/norms"  # not in the first logs of version 1
IDS = "steps/ids"
COEFFICIENTS = "steps/coef"
MICRO = "steps/micro"
MASKS = "steps/nograd"
WEIGHTS = "steps/w"
STRINGS = "ids/bytes"
STRING_ENDS = "ids/ends"
SNAP_BUFFERS = "snap/buf"
SNAP_RANDOM = "snap/rng"
SNAP_BATCHES = "snap/batch"
STATES = "snap/states"
SNAP_STATE = "snap/opt"

NONE = -1  # "no row": deterministic pass, equal coefficients, no epoch
UNCACHED = {"rdcc_nbytes": 0}  # a writer's chunks go to the file as they are, not by a copy
CHUNK = 1 << 20  # of rows of parameters; others take an HDF5 chunk of a sixteenth
WORD = np.dtype("<u4")  # what recorded batches are stored in: shuffled by HDF5, then deflated

# checksum in a meta row -> the table that it guards
CHECKSUMS = {
    "micro_crc": MICRO,
    "ids_crc": IDS,
    "coef_crc": COEFFICIENTS,
    "rng_crc": SNAP_RANDOM,
    "hyper_crc": HYPER,
    "groups_crc": GROUPS,
    "nograd_crc": MASKS,
    "buffers_crc": SNAP_BUFFERS,
}
META_DTYPE = np.dtype(
    [
        *(
            (name, "<i8")
            for name in (
                *("step", "epoch", "ids", "count", "micro", "micro_count", "hyper", "groups"),
                *("members", "member_count", "mask", "buffers", "buffers_after"),
            )
        ),
        ("gradient_norm", "<f8"),
        ("clip_factor", "<f8"),
        ("parameters_crc", "<u4"),
        ("parameters_after_crc", "<u4"),
        *((name, "<u4") for name in CHECKSUMS),
        ("record_crc", "<u4"),
    ]
)
META_STRUCT = struct.Struct("<13q2d11I")  # the same bytes, packed in a microsecond
MICRO_DTYPE = np.dtype(
    [
        ("ids", "<i8"),
        ("count", "<i8"),
        ("coef", "<i8"),
        ("weight", "<f8"),
        ("rng", "<i8"),
        ("batch", "<i8"),
        ("batch_bytes", "<i8"),
        ("batch_crc", "<u4"),
    ]
)
MICRO_STRUCT = struct.Struct("<3qd3qI")
GROUP_DTYPE = np.dtype([("group", "<i8"), ("parameter", "<i8")])
STATE_DTYPE = np.dtype([("step", "<i8"), ("offset", "<i8"), ("bytes", "<i8"), ("crc", "<u4")])
STATUS_DTYPE = np.dtype([("steps", "<i8"), ("closed", "<i8"), ("strings", "<i8"), ("crc", "<u4")])
SEGMENT_DTYPE = np.dtype(
    [("step", "<i8"), ("began", "S32"), ("torch", "S32"), ("threads", "<i8"), ("crc", "<u4")]
)


@dataclass(frozen=True)
class Table:
    """A growing dataset: its element type, and whether its rows have a width of their own."""

    dtype: np.dtype[Any]
    wide: bool = False
    chunk: int = 256


TABLES = {
    SEGMENTS: Table(SEGMENT_DTYPE, chunk=16),
    GROUPS: Table(GROUP_DTYPE),
    META: Table(META_DTYPE),
    MICRO: Table(MICRO_DTYPE),
    STATES: Table(STATE_DTYPE, chunk=16),
    IDS: Table(np.dtype("<i8"), chunk=1024),
    COEFFICIENTS: Table(np.dtype("<f8"), chunk=1024),
    STRINGS: Table(np.dtype("u1"), chunk=4096),
    STRING_ENDS: Table(np.dtype("<i8"), chunk=1024),
    SNAP_STATE: Table(np.dtype("u1"), chunk=CHUNK // 16),
    SNAP_BATCHES: Table(WORD, chunk=1 << 14),
    HYPER: Table(np.dtype("<f8"), wide=True),
    NORMS: Table(np.dtype("<f8"), wide=True),
    MASKS: Table(np.dtype("u1"), wide=True),
    WEIGHTS: Table(np.dtype("u1"), wide=True),
    SNAP_BUFFERS: Table(np.dtype("u1"), wide=True),
    SNAP_RANDOM: Table(np.dtype("u1"), wide=True),
}


def create(
    file: h5py.File,
    parameters: Sequence[Field],
    buffers: Sequence[Field],
    *,
    hyperparameters: Sequence[str],
    random_bytes: int,
    attributes: Mapping[str, Any],
    filters: Mapping[str, Any],
) -> None:
    """Create every object of an empty log; nothing is created afterwards.

    Args:
        file: A new file.
        parameters: Layout of a row of parameters.
        buffers: Layout of a row of buffers.
        hyperparameters: Names of the columns of ``steps/hyper``.
        random_bytes: Length of a row of random state.
        attributes: Metadata of the run.
        filters: HDF5 compression of the rows of parameters.
    """
    known = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **attributes,
        "hyperparameters": "\n".join(hyperparameters),
    }
    for name, layout in ((PARAMETERS, parameters), (BUFFERS, buffers)):
        table = layout_table(layout)
        file.create_dataset(name, data=table)
        known[name.replace("/", "_") + "_crc"] = zlib.crc32(table.tobytes())
    for name, value in known.items():
        if isinstance(value, str):  # of fixed length
            file.attrs[name] = np.bytes_(value.encode() or b"\0")
        else:
            file.attrs[name] = value
    file.create_dataset(STATUS, data=sealed(np.zeros(1, STATUS_DTYPE)))
    widths = {
        HYPER: len(hyperparameters),
        NORMS: len(parameters),
        MASKS: 2 * len(parameters),
        WEIGHTS: row_bytes(parameters),
        SNAP_BUFFERS: row_bytes(buffers),
        SNAP_RANDOM: random_bytes,
    }
    for name, kind in TABLES.items():
        if kind.wide:
            options = filters if name == WEIGHTS else {}
            _create_rows(file, name, max(1, widths[name]), kind.dtype, options)
        else:
            options = {"compression": 1, "shuffle": True} if name == SNAP_BATCHES else {}
            file.create_dataset(
                name, (0,), kind.dtype, maxshape=(None,), chunks=(kind.chunk,), **options
            )


def _create_rows(
    file: h5py.File, name: str, width: int, dtype: np.dtype[Any], options: Mapping[str, Any]
) -> None:
    """Create a table of rows in balanced chunks of at most 1 MiB; a snapshot shares none."""
    pieces = -(-width * dtype.itemsize // CHUNK)
    columns = -(-width // pieces)
    rows = 1 if name == WEIGHTS else max(1, min(256, CHUNK // 16 // (columns * dtype.itemsize)))
    file.create_dataset(
        name, (0, width), dtype, maxshape=(None, width), chunks=(rows, columns), **options
    )


def packed_meta(values: Sequence[float]) -> bytes:
    """Return a meta row; its own checksum, the last value, is made anew."""
    data = META_STRUCT.pack(*values[:-1], 0)
    return data[:-4] + zlib.crc32(data).to_bytes(4, "little")


def sealed(row: NDArray[Any], field: str = "crc") -> NDArray[Any]:
    """Return a row with its own checksum."""
    blank = row.copy()
    blank[field] = 0
    blank[field] = zlib.crc32(blank.tobytes())
    return blank


def state_crc(row: Any, data: bytes) -> int:
    """Return the checksum of a full state: of its row in ``snap/states`` and of its bytes."""
    numbers = np.array([row["step"], row["offset"], row["bytes"]], "<i8")
    return zlib.crc32(data, zlib.crc32(numbers.tobytes()))


def is_sealed(row: NDArray[Any], field: str = "crc") -> bool:
    """Return whether a row matches its own checksum."""
    return bool(sealed(row, field)[field] == row[field])
