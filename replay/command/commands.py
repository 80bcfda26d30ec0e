"""Commands beside the main one: self-influence, whether a run reproduces, what a log holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from replay.command.options import JSON, replay_options, result_options
from replay.command.show.follow import follow
from replay.command.show.inspection import inspection, inspection_table
from replay.command.show.plan import plan_table
from replay.command.show.self_influence import self_json, self_report
from replay.command.terminal import Terminal
from replay.progress import Progress
from replay.results.output import check_free
from replay.session.replay import Replay
from tracer.log.read.run_log import open_log


def opened(log: Path, options: dict[str, Any], target: Path | None = None) -> Replay:
    """Return the replay that a command's options ask for; its result may not replace the task."""

    def announce(file: str) -> None:
        if target is not None:
            check_free(target, overwrite=True, inputs=[file])
        click.echo(f"running the task's code in {file}", err=True)

    return Replay(
        log,
        options["task"],
        device=options["device"],
        dtype=torch.float64 if options["dtype"] == "float64" else None,
        values=options["values"],
        memory=options["memory"],
        audit=options["audit"],
        allow_tf32=options["allow_tf32"],
        announce=announce,
    )


@click.command("self")
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Examples shown."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Result file.  [default: LOG with the ending .self.h5]",
)
@click.option("--steps", help="A window a:b of the run's steps.  [default: all]")
@replay_options
@result_options
def self_influence(
    log: Path, top: int, out: Path | None, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """How much did each training example's own visits move that example?

    Prints the examples with the largest self-influence, which are often mislabelled, and
    writes all of them to an HDF5 file. The cost is one pass over the run.
    """
    target = log.with_name(log.stem + ".self.h5") if out is None else out
    check_free(target, overwrite=overwrite, inputs=[log])
    run = opened(log, options, target)
    allow_mismatch = options["allow_mismatch"]
    found = run.self_influence(steps=options["steps"], allow_mismatch=allow_mismatch)
    found.save(target, overwrite=overwrite)
    click.echo(f"wrote {target}", err=True)
    if as_json:
        click.echo(json.dumps(self_json(found), allow_nan=False))
        return
    Terminal().print(self_report(found, describe=run.describe_train, k=top))


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--steps", help="A window a:b of the run's steps.  [default: all]")
@replay_options
def verify(log: Path, as_json: bool, **options: Any) -> None:
    """Re-execute every step and compare it with LOG; exit with 1 at the first that differs."""
    found = opened(log, options).verify(steps=options["steps"])
    facts = {"log": str(log), "steps": [found.steps.start, found.steps.stop]}
    scaled = {"scaled_outside": found.scaled_outside}
    click.echo(json.dumps({**facts, **scaled}) if as_json else f"{log}: {found}")


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@JSON
@click.option("--follow", "-f", "watch", is_flag=True, help="Watch a log that training writes.")
@click.option("--task", help="Also say how each parameter's gradients are computed; runs its code.")
def inspect(log: Path, as_json: bool, watch: bool, task: str | None) -> None:
    """Say what LOG holds; imports no task and runs no code unless --task names one."""
    if watch and as_json:
        raise click.UsageError("--follow prints lines, --json one object; pass one of them.")
    if watch:
        for line in follow(log):
            click.echo(line)
        return
    with open_log(log) as opened, Progress(enabled=True) as progress:
        facts = inspection(opened, progress.task("reading steps", len(opened)))
    paths = [] if task is None else Replay(log, task).plan()
    if as_json:
        plan = {} if task is None else {"plan": [asdict(path) for path in paths]}
        click.echo(json.dumps({**facts, **plan}))
        return
    Terminal().print(inspection_table(facts))
    if paths:
        Terminal().print(plan_table(paths))
