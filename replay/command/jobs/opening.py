"""From what the command line says to a replay and to test examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch

from replay.command.options import Settings, Tests
from replay.processes.group import here
from replay.results.output import check_inputs
from replay.session.replay import Replay
from replay.task import beginning, example_ids, ids_by_text, parse_test_ids
from tracer.errors import InputError, shown
from tracer.records import ID


def announced(file: str) -> None:
    """Say which code will run; of a job's processes, the first does."""
    if here().leads:
        click.echo(f"running the task's code in {file}", err=True)


def opened(log: Path, settings: Settings, target: Path | None = None) -> Replay:
    """Return the replay that a command asks for; its result may not replace the task."""

    def announce(file: str) -> None:
        if target is not None:
            check_inputs(target, [file])
        announced(file)

    return Replay(
        log,
        settings.task,
        device=here().device(settings.device),
        dtype=torch.float64 if settings.dtype == "float64" else None,
        values=settings.values,
        memory=settings.memory,
        audit=settings.audit,
        allow_tf32=settings.allow_tf32,
        match_environment=settings.match_environment,
        threads=settings.threads,
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
        return _typed(tests.ids, ids_by_text(run.task.test))
    return _listed(tests.file, run.task.test, "test")


def chosen_training(run: Replay, file: str) -> list[ID]:
    """Return the training IDs of a list, or all; as ``chosen``, with the same errors."""
    if file == "all":
        return example_ids(run.task.train)
    return _listed(file, run.task.train, "training")


def _listed(file: str, dataset: Any, side: str) -> list[ID]:
    try:
        with click.open_file(file, encoding="utf-8-sig") as lines:
            return parse_test_ids(lines, dataset, side)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown(file)} is not a text in UTF-8, but a list of {side} IDs is; write one ID a "
            "line."
        ) from error
    except OSError as error:
        raise _unreadable(file, error, ids_by_text(dataset, side), side) from error


def _unreadable(file: str, error: OSError, known: Mapping[str, ID], side: str) -> InputError:
    """Return the error for a list that cannot be read; it may be an ID that was meant."""
    why = f"the list of {side} IDs {shown(file)} cannot be read: {error.strerror or error}"
    if side != "test":
        return InputError(f"{why}; check the path, or say all.")
    if file in known:
        return InputError(f"{why}. {shown(file)} is a test ID: write --test-id {file}.")
    return InputError(f"{why}; check the path, or name examples with --test-id.")


def _typed(texts: tuple[str, ...], known: Mapping[str, ID]) -> list[ID]:
    for text in texts:
        if text not in known:
            raise InputError(
                f"--test-id {shown(text)}: the test set has no such example; {beginning(known)}."
            )
        if texts.count(text) > 1:
            raise InputError(
                f"--test-id {shown(text)} is given twice; name each test example once."
            )
    return [known[text] for text in texts]
