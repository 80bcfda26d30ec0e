"""What a log holds, read and shown; its task only where one is named."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from replay.command.jobs.opening import announced
from replay.command.show.follow import follow
from replay.command.show.inspect import inspection, inspection_table
from replay.command.show.plan import plan_summary, plan_table
from replay.command.terminal import Terminal
from replay.progress import Progress
from replay.session.plan import Plan
from replay.session.replay import Replay
from tracer.log.read.run_log import open_log
from tracer.log.read.summary import blocks


def inspect(*, log: Path, as_json: bool, watch: bool, task: str | None) -> None:
    """Read the log and show what it holds."""
    if watch and as_json:
        raise click.UsageError("--follow prints lines, --json one object; pass one of them.")
    if watch and task is not None:
        raise click.UsageError("--follow looks at the log, --task at gradients; pass one of them.")
    if watch:
        for line in follow(log):
            click.echo(line)
        return
    with open_log(log) as opened, Progress(enabled=True) as progress:
        facts = inspection(opened, progress.task("reading steps", blocks(opened)))
    paths = Plan() if task is None else Replay(log, task, announce=announced).plan()
    if as_json:
        plan = {"plan": [asdict(path) for path in paths], "passes": paths.passes}
        click.echo(json.dumps({**facts, **(plan if task is not None else {})}))
        return
    summary = [plan_summary(paths, paths.passes), Text()] if paths else []
    Terminal().print(*summary, inspection_table(facts), *([plan_table(paths)] if paths else []))
