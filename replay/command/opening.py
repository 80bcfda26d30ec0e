"""From what the command line says to a replay and to test examples."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from replay.command.options import Settings, Tests
from replay.results.output import check_free
from replay.session.replay import Replay
from replay.task import example_ids
from tracer.errors import InputError
from tracer.records import ID


def announced(file: str) -> None:
    """Say which code will run."""
    click.echo(f"running the task's code in {file}", err=True)


def opened(log: Path, settings: Settings, target: Path | None = None) -> Replay:
    """Return the replay that a command asks for; its result may not replace the task."""

    def announce(file: str) -> None:
        if target is not None:
            check_free(target, overwrite=True, inputs=[file])
        announced(file)

    return Replay(
        log,
        settings.task,
        device=settings.device,
        dtype=torch.float64 if settings.dtype == "float64" else None,
        values=settings.values,
        memory=settings.memory,
        audit=settings.audit,
        allow_tf32=settings.allow_tf32,
        announce=announce,
    )


def chosen(run: Replay, tests: Tests) -> list[ID]:
    """Return the test IDs that a command asks about, in the type of the test set's keys.

    Raises:
        InputError: One is unknown or stands twice, or the list cannot be read.
    """
    if tests.file == "all":
        return example_ids(run.task.test)
    if tests.file is None:
        return _typed(tests.ids, example_ids(run.task.test))
    try:
        with click.open_file(tests.file, encoding="utf-8-sig") as lines:
            return run.parse_test_ids(lines)
    except InputError as error:
        raise InputError(f"{tests.file}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{tests.file} is not a text in UTF-8, but a list of test IDs is; write one ID a line."
        ) from error
    except OSError as error:
        raise InputError(
            f"the list of test IDs {tests.file} cannot be read: {error.strerror}; check the path."
        ) from error


def _typed(texts: tuple[str, ...], keys: list[ID]) -> list[ID]:
    known = {str(key): key for key in keys}
    for text in texts:
        if text not in known:
            some = ", ".join(list(known)[:3])
            raise InputError(
                f"--test-id {text}: the test set has no such example; its {len(known)} IDs begin "
                f"{some}."
            )
        if texts.count(text) > 1:
            raise InputError(f"--test-id {text} is given twice; name each test example once.")
    return [known[text] for text in texts]
