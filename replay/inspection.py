"""What a log holds, without its task."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table

from tracer.reader import RunLog


def inspection(log: RunLog) -> dict[str, Any]:
    """Return the facts of a log as plain values."""
    metadata = log.metadata
    steps = list(log.steps())
    visits = [identity for step in steps for identity in step.batch_ids]
    rates = [rate for step in steps for rate in step.learning_rate]
    epochs = {step.epoch for step in steps if step.epoch is not None}
    random = sum(batch.random_state is not None for step in steps for batch in step.micro_batches)
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
        "epochs": len(epochs) or None,
        "visits": len(visits),
        "examples": len(set(visits)),
        "learning_rate": [min(rates), max(rates)] if rates else None,
        "parameters": elements,
        "parameter_dtypes": dtypes,
        "buffers": len(log.buffer_layout),
        "snapshots": f"every {metadata['snapshot_every']} step",
        "forwards_with_random_state": random,
        "device": metadata["device"],
        "threads": metadata["num_threads"],
        "versions": {k: metadata[k] for k in ("python", "torch", "numpy", "h5py", "hdf5")},
    }


def inspection_table(facts: dict[str, Any]) -> RenderableType:
    """Return the facts as a table."""
    table = Table.grid(padding=(0, 2))
    rate = facts["learning_rate"]
    rows = {
        "file": f"{facts['file']}, {facts['bytes']:,} bytes, "
        + ("closed cleanly" if facts["closed"] else "not closed: still written, or killed"),
        "run": f"{facts['run']}, {facts['created']}, format {facts['format']}",
        "task": facts["task"] or "none named",
        "model": f"{facts['model']}, {facts['parameters']:,} parameters "
        f"({', '.join(facts['parameter_dtypes'])}), {facts['buffers']} buffers",
        "optimizer": f"{facts['optimizer']}, reduction {facts['reduction']}, learning rate "
        + (f"{rate[0]:g} to {rate[1]:g}" if rate else "none"),
        "steps": f"{facts['steps']}, "
        + (f"{facts['epochs']} epochs" if facts["epochs"] else "epochs not set")
        + f", parameters {facts['snapshots']}",
        "examples": f"{facts['examples']:,} different, {facts['visits']:,} visits",
        "random state": f"recorded for {facts['forwards_with_random_state']} forward passes",
        "made with": f"{facts['device']}, {facts['threads']} threads, "
        + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
    }
    for name, text in rows.items():
        table.add_row(name, str(text))
    return table
