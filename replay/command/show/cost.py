"""What ``--dry-run`` prints."""

from __future__ import annotations

import json
from dataclasses import asdict

from replay.session.estimate import Cost


def cost_text(cost: Cost, *, as_json: bool) -> str:
    """Return what a job will take, as text or as JSON."""
    return json.dumps(asdict(cost)) if as_json else f"about {cost}"
