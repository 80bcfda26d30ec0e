"""Whether a run reproduces: every step taken again, and shown."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from replay.command.jobs.opening import opened
from replay.command.jobs.working import job
from replay.command.options import Settings, beside
from replay.command.show.verify import verify_json, verify_table
from replay.command.terminal import Terminal
from replay.processes.alone import Alone
from replay.processes.group import Group, here
from replay.session.together import ALONE, verified_together
from replay.steps.verify import NotVerified, Verification
from tracer.errors import InputError


def verify(
    *,
    log: Path,
    steps: str | None,
    sample: int | None,
    settings: Settings,
    as_json: bool,
) -> None:
    """Take every step again and show what was found."""
    group, missed = here(), None
    with group.agreeing():
        run = opened(log, settings)
    with _kept(group, log) as place:
        try:
            found = verified_together(run, group, place, steps=steps, sample=sample)
        except NotVerified as error:  # an answer, too
            found, missed = error.found, error
    if found is not None:
        _show(log, found, as_json=as_json)
    if missed is not None:
        raise missed


@contextmanager
def _kept(group: Group | Alone, log: Path) -> Iterator[Path]:
    """Return where several processes keep what they have compared, held until they are done."""
    place = beside(log, ".verify")
    if isinstance(group, Alone):
        yield place
        return
    with group.agreeing():
        if group.leads:
            _check_writable(log, place)
    with job(group, place, instead=ALONE):
        yield place


def _check_writable(log: Path, place: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise InputError(
            f"several processes keep beside {log} which steps reproduce, and nothing can be "
            f"written there: {error.strerror}.\n"
            f"1. {ALONE}\n"
            "2. Make a link to the log in a folder of your own, and name that."
        ) from error


def _show(log: Path, found: Verification, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(verify_json(log, found)))
    else:
        Terminal().print(verify_table(log, found))
