"""The processes that wrote a log: a row each, which a resumption keeps."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import torch

from tracer.log.parts.facts import Table
from tracer.log.parts.seals import is_sealed, sealed
from tracer.log.parts.sink import Writable
from tracer.log.parts.source import Readable

SEGMENTS = "segments"
SEGMENT_DTYPE = np.dtype(
    [("step", "<i8"), ("began", "S32"), ("torch", "S32"), ("threads", "<i8"), ("crc", "<u4")]
)
TABLES = {SEGMENTS: Table(SEGMENT_DTYPE, chunk=16)}


def encode(tables: Writable, step: int, threads: int) -> None:
    """Append a row for a process that begins now.

    Args:
        tables: The log's tables.
        step: Its first step.
        threads: How many torch trains with.
    """
    row = np.zeros(1, SEGMENT_DTYPE)
    row["step"], row["threads"] = step, threads
    row["began"] = datetime.now(timezone.utc).isoformat(timespec="seconds").encode()
    row["torch"] = str(torch.__version__).encode()
    tables.extend(SEGMENTS, sealed(row).tobytes(), 1)


def decode(tables: Readable) -> list[tuple[int, str]]:
    """Return the first step of each process, and when it began."""
    count = tables.length(SEGMENTS)
    rows = tables.rows(SEGMENTS, 0, count, "the list of segments")
    if not all(is_sealed(rows[k : k + 1]) for k in range(count)):
        raise tables.damage(SEGMENTS, "does not match its checksum")
    return [(int(row["step"]), row["began"].decode(errors="replace")) for row in rows]
