"""What several commands are told: which log, which test examples, how to replay, where to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from replay.command.kinds import Periods

Command = Callable[..., Any]
INFLUENCE_ENDING = ".influence.h5"

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON alone to stdout.")
STEPS = click.option("--steps", help="A window a:b of the run's steps.  [default: all]")
ALLOW_MISMATCH = click.option(
    "--allow-mismatch",
    is_flag=True,
    help="Go on where a step does not reproduce; the difference counts as rounding.",
)
DRY_RUN = click.option(
    "--dry-run",
    is_flag=True,
    help="Say how long it will take and how much memory, from some timed steps; write nothing.",
)
BY = click.option(
    "--by",
    type=Periods(),
    help="Keep scores by period, too: epoch, step, or so many steps.  [default: sums alone]",
)
_LOG = (
    click.argument("place", metavar="[LOG]", required=False, type=click.Path(path_type=Path)),
    click.option(
        "--log", type=click.Path(path_type=Path), help="The run log; a command also takes it bare."
    ),
)
_TESTS = (
    click.option(
        "--test",
        "test_file",
        metavar="FILE|all",
        help="File of test IDs, one a line ('-': standard input); all: every test example.",
    ),
    click.option("--test-id", "test_ids", multiple=True, help="A test ID; repeat for several."),
)
_SETTINGS = (
    click.option("--task", help="module:name or file.py:name.  [default: what the log names]"),
    click.option(
        "--memory",
        default="2GiB",
        show_default=True,
        help="Memory for activations and gradients, beside the model copies (for example 4GiB).",
    ),
    click.option(
        "--audit",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Check per-example gradients against ordinary backward passes every N passes.",
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
        help="Values of losses in float64 or in the model's dtype.",
    ),
    click.option(
        "--match-environment",
        is_flag=True,
        help="Take the run's number of threads and its oneDNN setting.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="How many to compute with.  [default: torch's number; for scores the faster of 1 and "
        "that, timed]",
    ),
)


@dataclass(frozen=True)
class Settings:
    """How a run is replayed: arguments of ``Replay``, as the command line gives them."""

    task: str | None
    memory: str
    audit: int
    allow_tf32: bool
    match_environment: bool
    threads: int | None
    device: str
    dtype: str
    values: str


@dataclass(frozen=True)
class Tests:
    """Which test examples are asked about; exactly one is given.

    Attributes:
        file: A list of IDs, ``-`` or ``all``.
        ids: IDs as text.
    """

    file: str | None
    ids: tuple[str, ...]

    @property
    def inputs(self) -> list[str]:
        """The files that they are read from."""
        return [] if self.file is None else [self.file]


def takes_log(command: Command) -> Command:
    """Give a command ``log``, named as an argument or as ``--log``."""

    @wraps(command)
    def told(*, place: Path | None, log: Path | None, **given: Any) -> None:
        if place is not None and log is not None:
            raise click.UsageError(
                f"the log was named twice, {place} and --log {log}; name it once."
            )
        found = log if place is None else place
        if found is None:
            raise click.UsageError(
                "expected a run log: --log run.h5, or its path after the command; see --help."
            )
        command(log=found, **given)

    return with_options(_LOG, told)


def takes_tests(command: Command) -> Command:
    """Give a command ``tests``."""

    @wraps(command)
    def told(*, test_file: str | None, test_ids: tuple[str, ...], **given: Any) -> None:
        if test_file is not None and test_ids:
            raise click.UsageError("--test and --test-id exclude each other; pass one of them.")
        if test_file is None and not test_ids:
            raise click.UsageError(
                "expected test examples: --test ids.txt, --test all or --test-id ID; see --help."
            )
        command(tests=Tests(test_file, test_ids), **given)

    return with_options(_TESTS, told)


def takes_settings(command: Command) -> Command:
    """Give a command ``settings``."""

    @wraps(command)
    def told(**given: Any) -> None:
        own = {field.name: given.pop(field.name) for field in fields(Settings)}
        command(settings=Settings(**own), **given)

    return with_options(_SETTINGS, told)


def computes(ending: str) -> Callable[[Command], Command]:
    """Give a command all that says how a result is computed, shown and where it goes.

    Args:
        ending: Of a result for which ``--out`` names no place; it stands beside its log then.
    """
    out = click.option(
        "--out",
        type=click.Path(path_type=Path),
        help=f"Result file.  [default: LOG with the ending {ending}]",
    )
    overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing result.")

    def given(command: Command) -> Command:
        @wraps(command)
        def told(*, log: Path, out: Path | None, **more: Any) -> None:
            command(log=log, target=beside(log, ending) if out is None else out, **more)

        return with_options((takes_settings, JSON, ALLOW_MISMATCH, out, overwrite), told)

    return given


def beside(log: Path, ending: str) -> Path:
    """Return where a result stands that ``--out`` gives no place: beside its log."""
    return log.parent / (log.stem + ending)


def with_options(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """Give a command some options, in the order in which its help names them."""
    for option in reversed(options):
        command = option(command)
    return command
