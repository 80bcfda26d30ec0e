"""Creating a log, and what it will cost."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from tracer.codec.delta import KEYFRAME_EVERY
from tracer.codec.layout import fields
from tracer.hdf5.filters import filters
from tracer.hdf5.opening import open_hdf5
from tracer.log import schema
from tracer.log.parts.facts import Facts
from tracer.log.write.abandoning import abandon
from tracer.log.write.writer import LogWriter

LEAST = 1 << 16  # bytes, less than any log takes


@dataclass(frozen=True)
class LogOptions:
    """How a log is written.

    Attributes:
        compression: ``"none"`` or ``"delta"``.
        momentum: Share of its last move that the update rule repeats.
        sync_every: Steps between forced writes to the disk itself; 0 is never.
        state_every: Steps between full states; None is what costs under 1 %.
    """

    compression: str = "none"
    momentum: float = 0.0
    sync_every: int = 0
    state_every: int | None = None


def create_log(
    path: Path,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    *,
    hyperparameters: Sequence[str],
    random_bytes: int,
    attributes: Mapping[str, Any],
    options: LogOptions,
) -> LogWriter:
    """Create a log, which takes its name once it is whole.

    Whatever was there is gone, though readers who have it open keep it.

    Args:
        path: The file.
        parameters: The model's parameters, in order.
        buffers: Its buffers, in order.
        hyperparameters: Names of the numbers logged for each group.
        random_bytes: Length of a row of random state.
        attributes: Metadata of the run.
        options: How it is written.
    """
    path = Path(os.path.realpath(path))
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")  # no file has that name
    file = None
    try:
        with new.open("xb") as room:
            room.write(bytes(LEAST))  # where this fails, HDF5 would crash
        file = open_hdf5(new, "w", fs_strategy="page", fs_page_size=4096, **schema.WRITING)
        facts = Facts(
            tuple(fields(parameters)),
            tuple(fields(buffers)),
            tuple(hyperparameters),
            random_bytes=random_bytes,
        )
        schema.create(
            file,
            facts,
            attributes={
                **attributes,
                "device": str(next((p.device for p in parameters.values()), "cpu")),
                "keyframe_every": KEYFRAME_EVERY,
                "encoding": options.compression,
                "momentum": options.momentum if options.compression != "none" else 0.0,
            },
            filters=filters(options.compression),
        )
        writer = LogWriter(file, sync_every=options.sync_every, path=path)
        new.replace(path)
    except BaseException:
        if file is not None:
            abandon(file)
        new.unlink(missing_ok=True)
        raise
    return writer


def environment() -> dict[str, Any]:
    """Return what else a run's exact course depends on."""
    return {
        "run_uuid": str(uuid.uuid4()),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": bool(torch.backends.mkldnn.enabled),
    }
