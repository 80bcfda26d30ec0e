"""Watching a log while training writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tracer.log.read.run_log import RunLog, open_log
from tracer.records import Step

_EVERY = 1.0  # seconds


def follow(path: Path, *, wait: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Yield a line about a log whenever it has grown, until its writer is done.

    Args:
        path: The log.
        wait: Called between two looks, with seconds.

    Raises:
        LogError: It cannot be read.
    """
    with open_log(path) as log:
        seen, began = 0, time.monotonic()
        while True:
            steps = log.refresh()
            now = time.monotonic()
            if steps > seen:
                rate = (steps - seen) / (now - began) if log.live and seen else None
                yield line(log, log.step(steps - 1), rate)
                seen, began = steps, now
            if not log.live:
                yield ending(log)
                return
            if not log.is_being_written():
                log.refresh()
                if len(log) > seen:
                    yield line(log, log.step(len(log) - 1), None)
                yield ending(log)
                return
            wait(_EVERY)


def line(log: RunLog, step: Step, rate: float | None) -> str:
    """Return what a log holds now, in one line."""
    parts = [
        f"step {step.index}",
        None if step.epoch is None else f"epoch {step.epoch}",
        None if rate is None else f"{rate:.3g} steps/s",
        "lr " + ", ".join(f"{value:.3g}" for value in step.learning_rate),
        f"gradient norm {step.gradient_norm:.4g}",
        f"{log.path.stat().st_size / 1e6:,.1f} MB",
    ]
    return "  ".join(part for part in parts if part is not None)


def ending(log: RunLog) -> str:
    """Return how the log ended."""
    how = "closed" if log.metadata["closed"] else "its writer ended without closing it"
    return f"{log.path}: {how}, {len(log)} steps"
