"""Types of options of the command line."""

from __future__ import annotations

from typing import Any

import click


class Tolerance(click.ParamType[float | None]):
    """A number or ``none``."""

    name = "FLOAT|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | None:
        """Return a number, or None for ``none``."""
        if value is None or str(value).lower() == "none":
            return None
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'none'.", param, ctx)


class Checkpoints(click.ParamType[int | str | list[int]]):
    """What ``checkpoints=`` takes."""

    name = "N|t,t,...|epochs|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str | list[int]:
        """Return a number, a list of steps, ``"epochs"`` or ``"all"``."""
        if isinstance(value, int) or value in ("epochs", "all"):
            return value  # type: ignore[no-any-return]
        try:
            steps = [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a number, a list of steps, epochs or all.", param, ctx)
        return steps if "," in value else steps[0]
