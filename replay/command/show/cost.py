"""What ``--dry-run`` prints."""

from __future__ import annotations

import json
from dataclasses import asdict

from replay.session.estimate import Cost


def cost_text(cost: Cost, *, as_json: bool) -> str:
    """Return what a job will take, as text or as JSON."""
    if as_json:
        return json.dumps(asdict(cost))
    said = set(cost.passes.values())
    sides = said if len(said) == 1 else [f"{side}: {how}" for side, how in cost.passes.items()]
    return "\n".join([f"about {cost}", *sides])
