"""Looking at a log or a task without replaying."""

from __future__ import annotations

import io
import json
import re

import h5py
import numpy as np
import torch
from rich.console import Console

from replay import load_task
from replay.command.show.plan import plan_summary
from replay.session.plan import ParameterPath
from tests.helpers.command import run, trace
from tracer import TracingSGD
from tracer.log import metadata


def test_log_without_a_task(folder, capsys):
    trace(folder / "bare.h5", None)
    code, _, err = run(capsys, "--log", "bare.h5", "--test", "ids.txt")
    assert code == 2
    assert "names no task; pass one" in err


def test_inspect_imports_nothing(folder, capsys):
    (folder / "work.py").write_text("raise SystemExit('imported')")
    code, out, _ = run(capsys, "inspect", "run.h5")
    assert code == 0
    for part in (
        "torch.optim.SGD",
        "4, epochs not set, parameters every step",
        "5 different, 8 visits",
        "work.py:task",
    ):
        assert part in out
    assert "learning rate 0.1 " in out
    assert "0.1 to" not in out  # a range only where there is one
    code, out, _ = run(capsys, "inspect", "run.h5", "--json")
    assert json.loads(out)["steps"] == 4


def test_inspect_shows_metadata_as_it_is(folder, capsys):
    with h5py.File("run.h5", "r+") as file:
        for name in ("task", "model", "optimizer", "run_uuid", "device"):
            file.attrs[name] = np.bytes_(f"[/red]{name}[bold]")
        metadata.seal(file)
    code, out, err = run(capsys, "inspect", "run.h5")
    assert code == 0, err
    for name in ("task", "model", "optimizer", "run_uuid", "device"):
        assert f"[/red]{name}[bold]" in out


def test_inspect_follow_prints_lines(folder, capsys):
    code, out, _ = run(capsys, "inspect", "run.h5", "--follow")
    assert code == 0
    step, end = out.splitlines()
    assert step.startswith("step 3  lr 0.1  gradient norm ")
    assert end == "run.h5: closed, 4 steps"
    code, _, err = run(capsys, "inspect", "run.h5", "-f", "--json")
    assert (code, "--follow prints lines, --json one object" in err) == (2, True)


def test_inspect_with_a_task_shows_the_plan(folder, capsys):
    code, out, _ = run(capsys, "inspect", "run.h5", "--task", "work.py:task", "--json")
    assert code == 0
    plan = {row["name"]: row for row in json.loads(out)["plan"]}
    assert plan["0.weight"] == {
        "name": "0.weight",
        "shape": [5, 4],
        "train": "linear",
        "test": "linear",
    }
    code, out, _ = run(capsys, "inspect", "run.h5", "--task", "work.py:task")
    assert "How gradients are computed" in out
    assert "2.bias" in out
    first, second, *_ = out.splitlines()
    assert " ".join(first.split()) == "training side 4 from one backward pass"
    assert " ".join(second.split()) == "test side 4 from one backward pass"
    code, _, err = run(capsys, "inspect", "run.h5", "--task", "work.py:task", "-f")
    assert (code, "--follow looks at the log, --task at gradients" in err) == (2, True)


def test_the_summary_of_a_plan_names_reasons():
    ways = [
        "linear",
        "bias; complete: used by Mm",
        "complete: used by Mm",
        "complete: odd",
        "not moved",
    ]
    paths = [ParameterPath(f"p{k}", [2], way, "no gradient") for k, way in enumerate(ways)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(plan_summary(paths, {"test values": "16 states in one pass"}))
    train, test, several = console.export_text().splitlines()
    assert train.strip().split("  ")[-1] == (
        "1 from one backward pass, 1 no gradient, "
        "3 one backward per example: used by Mm (2), odd (1)"
    )
    assert test.strip().split("  ")[-1] == "5 no gradient"
    assert several.split() == ["test", "values", "16", "states", "in", "one", "pass"]


def test_dry_run_writes_nothing(folder, capsys):
    before = sorted(folder.iterdir())
    code, out, _ = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--dry-run")
    assert code == 0
    said = r"about .*, .* of it to start, peak memory [\d.]+ GB, [\d.]+ GB of it tables, 1 thread\n"
    assert re.match(said, out)
    assert out.splitlines()[1:] == ["16 states in one pass"]
    code, out, _ = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--dry-run", "--json")
    assert set(json.loads(out)) == {
        *("seconds", "starting", "peak_bytes", "table_bytes", "threads", "passes")
    }
    assert json.loads(out)["table_bytes"] == 8 * 2 * (3 * 14 + 2 * 12 * 4)
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {p.name for p in before} - {
        "__pycache__"
    }


def test_a_log_that_training_still_writes_is_verified(folder, capsys):
    task = load_task("work.py:task", trusted=True)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, "live.h5", task="work.py:task") as optimizer:
        for t in range(7):
            ids = [f"a{t}", f"a{t + 1}"]
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
        optimizer.flush()
        code, out, err = run(capsys, "verify", "live.h5", "--steps", "0:5")
        assert code == 0, err
        assert "steps 0:5" in out
        assert run(capsys, "verify", "live.h5", "--steps", "0:9")[0] == 2
