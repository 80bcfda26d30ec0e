"""What is common to everything in a run log: its version, metadata, status and meta rows; creation.

Parameters lie in one flat byte row per snapshot; what varies lies in sparse tables, each step's
meta row saying which rows are its own, with a checksum for each table. Nothing is of a
variable-length HDF5 type (their heap is not safe under SWMR) and nothing is pickled. The tables
of each part of a step are in ``parts``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from tracer.codec.layout import Field, layout_table, row_bytes
from tracer.log import metadata
from tracer.log.parts import table
from tracer.log.parts.buffers import SNAP_BUFFERS
from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.hyperparameters import decode_names, encode_names
from tracer.log.parts.part import packer
from tracer.log.parts.seals import sealed

NAMES = "optimizer_names"  # of several optimizers
FORMAT = "tracin-run"
FORMAT_VERSION = 1

PARAMETERS = "layout/parameters"
BUFFERS = "layout/buffers"
STATUS = "status"
META = "steps/meta"
WEIGHTS = "steps/w"
LAYOUTS = ((PARAMETERS, WEIGHTS), (BUFFERS, SNAP_BUFFERS))  # of whose rows each one is

# chunks go to the file as they are, not by a copy; every HDF5 from 1.10 on reads what is written
WRITING = {"rdcc_nbytes": 0, "libver": ("v110", "v110")}
_CHUNK = 1 << 20  # bytes of a row of parameters; of other rows a sixteenth

META_DTYPE = np.dtype(
    [
        *((name, "<i8") for name in ("step", "epoch", *table.COLUMNS)),
        *((name, "<f8") for name in ("gradient_norm", "clip_factor")),
        *((name, "<u4") for name in ("parameters_crc", "parameters_after_crc", *table.CHECKSUMS)),
        ("record_crc", "<u4"),
    ]
)
META_STRUCT = packer(META_DTYPE)
STATUS_DTYPE = np.dtype(
    [
        *((name, "<i8") for name in ("steps", "closed", "strings", "sync_every")),
        ("parameters_crc", "<u4"),  # of the last ones
        ("crc", "<u4"),
    ]
)

TABLES = {
    META: Table(META_DTYPE),
    WEIGHTS: Table(np.dtype("u1"), lambda facts: row_bytes(facts.parameters)),
    **table.TABLES,
}


def create(
    file: h5py.File, facts: Facts, *, attributes: Mapping[str, Any], filters: Mapping[str, Any]
) -> None:
    """Create every object of an empty log; nothing is created afterwards.

    Args:
        file: A new file.
        facts: What holds for every step.
        attributes: Metadata of the run.
        filters: HDF5 compression of the rows of parameters.
    """
    known = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **attributes,
        "hyperparameters": encode_names(facts.hyperparameters),
    }
    for name, layout in ((PARAMETERS, facts.parameters), (BUFFERS, facts.buffers)):
        rows = layout_table(layout)
        file.create_dataset(name, data=rows)
        known[name.replace("/", "_") + "_crc"] = zlib.crc32(rows.tobytes())
    metadata.write(file, known)
    file.create_dataset(STATUS, data=sealed(np.zeros(1, STATUS_DTYPE)))
    for name, kind in TABLES.items():
        options = {"compression": 1, "shuffle": True} if kind.deflated else {}
        create_table(file, name, facts, filters if name == WEIGHTS else options)


def create_table(file: h5py.File, name: str, facts: Facts, options: Mapping[str, Any]) -> None:
    """Create a table; wide rows in balanced chunks of at most 1 MiB, a snapshot shares none."""
    kind = TABLES[name]
    if kind.width is None:
        place = {"maxshape": (None,), "chunks": (kind.chunk,)}
        file.create_dataset(name, (0,), kind.dtype, **place, **options)
        return
    width = max(1, kind.width(facts))
    pieces = -(-width * kind.dtype.itemsize // _CHUNK)
    columns = -(-width // pieces)
    most = _CHUNK // 16 // (columns * kind.dtype.itemsize)
    rows = 1 if name == WEIGHTS else max(1, min(256, most))
    file.create_dataset(
        name, (0, width), kind.dtype, maxshape=(None, width), chunks=(rows, columns), **options
    )


def facts_of(
    attributes: Mapping[str, Any], parameters: Sequence[Field], buffers: Sequence[Field]
) -> Facts:
    """Return what holds for every step of a log that is there.

    Args:
        attributes: Its metadata.
        parameters: Layout of a row of parameters.
        buffers: Layout of a row of buffers.
    """
    return Facts(
        tuple(parameters),
        tuple(buffers),
        tuple(decode_names(str(attributes["hyperparameters"]))),
        tuple(int(k) for k in str(attributes["cuda_devices"]).split()),
        data_seed=int(attributes["data_seed"]) if "data_seed" in attributes else None,
        optimizers=tuple(decode_names(str(attributes[NAMES])) if NAMES in attributes else ()),
    )


def packed_meta(values: Sequence[float]) -> bytes:
    """Return a meta row; its own checksum, the last value, is made anew."""
    data = META_STRUCT.pack(*values[:-1], 0)
    return data[:-4] + zlib.crc32(data).to_bytes(4, "little")
