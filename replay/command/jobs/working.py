"""A job on one process or several: where its result goes, and what is kept until it is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from replay.processes.alone import Alone
from replay.processes.group import Group
from replay.results.part_folder import parts_of, remove_parts
from replay.results.reservation import reserved


@contextmanager
def job(group: Group | Alone, target: Path, **how: str) -> Iterator[None]:
    """Hold the place of a result; its parts are removed at the end, and kept at Ctrl-C."""
    try:
        with reserved(target, **how) if group.leads else nullcontext():
            yield
            if group.leads:
                remove_parts(target)
    except KeyboardInterrupt:
        if group.leads and (parts := parts_of(target)).exists():
            click.echo(f"Finished parts are in {parts}; the same command goes on.", err=True)
        raise
