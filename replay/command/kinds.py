"""What options take: numbers, lists and names, as the command line gives them."""

from __future__ import annotations

from typing import Any

import click

from replay.names import EPOCH, SELF, STEP


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


class MethodName(click.Choice[str]):
    """A method; who looks for self-influence is shown the way."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name of a method."""
        if value == SELF:
            self.fail("self-influence is a command: tracin-replay self run.h5.", param, ctx)
        return super().convert(value, param, ctx)


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


class Periods(click.ParamType[str | int]):
    """What ``by=`` takes."""

    name = "epoch|step|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | int:
        """Return ``"epoch"``, ``"step"`` or a number of steps."""
        if value in (EPOCH, STEP):
            return value  # type: ignore[no-any-return]
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is not epoch, step or a number of steps.", param, ctx)


class Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Return the numbers."""
        try:
            return (
                tuple(int(part) for part in value.split(",")) if isinstance(value, str) else value
            )
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 1,5,20.", param, ctx)
