"""Whether a run reproduces, as a line and as a plain dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replay.steps.verify import Verification


def verify_line(log: Path, found: Verification) -> str:
    """Return what was found in one line."""
    return f"{log}: {found}"


def verify_json(log: Path, found: Verification) -> dict[str, Any]:
    """Return what was found as plain values."""
    return {
        "log": str(log),
        "steps": [found.steps.start, found.steps.stop],
        "scaled_outside": found.scaled_outside,
        "update_checked": found.unsplit is None,
    }
