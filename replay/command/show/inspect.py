"""What a log holds, without its task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import listed_steps
from replay.command.terminal import literal
from replay.results.summary import counted_threads
from tracer.log.read.run_log import RunLog
from tracer.log.read.summary import summary


def inspection(log: RunLog, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Return the facts of a log as plain values.

    Args:
        log: The log.
        advance: Called after some thousand steps.
    """
    metadata = log.metadata
    every = metadata["snapshot_every"]
    steps = summary(log, advance)
    elements = sum(shape.numel() for shape, _ in log.parameter_layout.values())
    dtypes = sorted({str(d).removeprefix("torch.") for _, d in log.parameter_layout.values()})
    return {
        "file": str(log.path),
        "bytes": log.path.stat().st_size,
        "closed": metadata["closed"],
        "run": metadata["run_uuid"],
        "created": metadata["created"],
        "format": metadata["format_version"],
        "task": metadata["task"],
        "model": metadata["model"],
        "optimizer": metadata["optimizer"],
        "reduction": metadata["reduction"],
        "steps": len(log),
        "epochs": len(steps.epochs) or None,
        "visits": steps.visits,
        "examples": len(steps.examples),
        "learning_rate": [min(steps.rates), max(steps.rates)] if steps.rates else None,
        "parameters": elements,
        "parameter_dtypes": dtypes,
        "buffers": len(log.buffer_layout),
        "snapshots": {0: "every epoch", 1: "every step"}.get(every, f"every {every} steps"),
        "forwards_with_random_state": steps.forwards,
        "recorded_batches": steps.recorded,
        "encoding": metadata["encoding"],
        "full_states": log.states(),
        "segments": [{"step": step, "began": began} for step, began in log.segments()],
        "device": metadata["device"],
        "threads": metadata["num_threads"],
        "ranks": metadata["ranks"],
        "versions": {k: metadata[k] for k in ("python", "torch", "numpy", "h5py", "hdf5")},
    }


def inspection_table(facts: dict[str, Any]) -> RenderableType:
    """Return the facts as a table."""
    table = Table.grid(padding=(0, 2))
    states = listed_steps(facts["full_states"])
    rates = dict.fromkeys(f"{rate:g}" for rate in facts["learning_rate"] or ())
    rows = {
        "file": f"{facts['file']}, {facts['bytes']:,} bytes, "
        + ("closed cleanly" if facts["closed"] else "not closed: still written, or killed"),
        "run": f"{facts['run']}, {facts['created']}, format {facts['format']}",
        "task": facts["task"] or "none named",
        "model": f"{facts['model']}, {facts['parameters']:,} parameters "
        f"({', '.join(facts['parameter_dtypes'])}), {facts['buffers']} buffers",
        "optimizer": f"{facts['optimizer']}, reduction {facts['reduction']}, learning rate "
        + (" to ".join(rates) or "none"),
        "steps": f"{facts['steps']}, "
        + (f"{facts['epochs']} epochs" if facts["epochs"] else "epochs not set")
        + f", parameters {facts['snapshots']}, encoding {facts['encoding']}",
        "examples": f"{facts['examples']:,} different, {facts['visits']:,} visits",
        "random state": f"recorded for {facts['forwards_with_random_state']} forward passes",
        "batches": f"{facts['recorded_batches']} recorded, the others by their IDs",
        "full states": f"before {states}; a killed run resumes from them",
        "written": "; ".join(f"from step {s['step']} on {s['began']}" for s in facts["segments"]),
        "made with": f"{facts['device']}, {_processors(facts['ranks'], facts['threads'])}, "
        + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
    }
    for name, text in rows.items():
        table.add_row(name, literal(text))
    return table


def _processors(ranks: int, threads: int) -> str:
    """Return "2 threads", or "4 ranks of 2 threads" for a run of several processes."""
    return f"{ranks} ranks of {counted_threads(threads)}" if ranks > 1 else counted_threads(threads)
