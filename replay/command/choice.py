"""Which counterfactual runs the command line asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import click

from replay.command.options import Command, with_options

_CHOICE: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--leave-one-out", metavar="FILE|all", help="A run without each of these training examples."
    ),
    click.option(
        "--subsets", type=click.IntRange(min=1), help="So many runs without a random subset."
    ),
    click.option(
        "--fraction",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.5,
        show_default=True,
        help="The share of the training examples in each subset.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the subsets."
    ),
    click.option(
        "--remove", metavar="FILE", help="One run without all of these training examples."
    ),
    click.option("--scale", type=float, help="Multiply their weights by this instead of 0."),
)


@dataclass(frozen=True)
class Choice:
    """Which counterfactual runs are asked for; exactly one kind is given.

    Attributes:
        leave_one_out: A list of training IDs, or ``all``: a run without each.
        subsets: How many random subsets: a run without each.
        fraction: The share of the training examples in each subset.
        seed: Of the draw.
        remove: A list of training IDs: one run without all of them.
        scale: What their weights are multiplied by instead of 0.
    """

    leave_one_out: str | None
    subsets: int | None
    fraction: float
    seed: int
    remove: str | None
    scale: float | None

    def check(self) -> None:
        """Raise unless one kind of runs is asked for."""
        given = [v for v in (self.leave_one_out, self.subsets, self.remove) if v is not None]
        if len(given) != 1:
            raise click.UsageError(
                "expected one of --leave-one-out train.txt, --subsets 100 and --remove train.txt; "
                "see --help."
            )
        if self.scale is not None and self.remove is None:
            raise click.UsageError("--scale goes with --remove, whose examples it is for.")

    @property
    def inputs(self) -> list[str]:
        """The files that IDs are read from."""
        return [file for file in (self.leave_one_out, self.remove) if file is not None]


def takes_choice(command: Command) -> Command:
    """Give a command ``choice``."""

    @wraps(command)
    def told(**given: Any) -> None:
        choice = Choice(**{field.name: given.pop(field.name) for field in fields(Choice)})
        choice.check()
        command(choice=choice, **given)

    return with_options(_CHOICE, told)
