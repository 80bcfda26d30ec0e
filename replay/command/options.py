"""Options of the command line: types, and those that several commands share."""

from __future__ import annotations

from collections.abc import Callable
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


_REPLAY = [
    click.option("--task", help="module:name or file.py:name.  [default: what the log names]"),
    click.option("--memory", default="2GiB", show_default=True, help="Budget for gradients."),
    click.option(
        "--audit",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Passes between proofs of the gradients; 1 proves every pass.",
    ),
    click.option("--allow-tf32", is_flag=True, help="Let a GPU round products to TF32."),
    click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda."),
    click.option(
        "--dtype",
        type=click.Choice(["model", "float64"]),
        default="model",
        show_default=True,
        help="Gradients in the run's own dtype or in float64.",
    ),
    click.option(
        "--values",
        type=click.Choice(["float64", "model"]),
        default="float64",
        show_default=True,
        help="Test losses in float64 or in the model's dtype.",
    ),
]
_RESULT = [
    click.option(
        "--allow-mismatch",
        is_flag=True,
        help="Go on where a step does not reproduce; the difference counts as rounding.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace an existing result."),
]


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON alone to stdout.")


def replay_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that replays a run."""
    for option in reversed([*_REPLAY, JSON]):
        command = option(command)
    return command


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add those of every command that writes a result."""
    for option in reversed(_RESULT):
        command = option(command)
    return command
