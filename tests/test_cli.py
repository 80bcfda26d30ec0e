"""The command line: results, messages, exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
import torch

from replay import Influence, Replay
from replay.cli import main
from replay.program import cli
from tracer.errors import GradientError, InputError, OutputExistsError

ROOT = Path(__file__).parents[1]
INTERRUPTED = "Interrupted; no file was written unless a line above says so."
TASK = """
import time
import torch
from torch import nn
from replay import Task

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))
data = {f"a{k}": (X[k], Y[k]) for k in range(20)}

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def slow(model, batch):
    print("computing", flush=True)
    time.sleep(0.2)
    return loss(model, batch)

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

train = {k: v for k, v in data.items() if int(k[1:]) < 14}
test = {k: v for k, v in data.items() if int(k[1:]) >= 14}
task = Task(build, loss, train, test, show=lambda example: f"class {int(example[1])}")
slow_task = Task(build, slow, train, test)
other = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with a task, a log of four steps and a list of test IDs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(TASK)
    (tmp_path / "ids.txt").write_text("# two of them\na14  # first\n\na17\n")
    trace(tmp_path / "run.h5", "work.py:task")
    return tmp_path


def trace(path, name):
    from replay import load_task
    from tracer import TracingSGD

    task = load_task("work.py:task", trusted=True)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, path, task=name) as optimizer:
        for t in range(4):
            ids = [f"a{t}", f"a{t + 1}"]
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)


def run(capsys, *arguments):
    """Run the program; return exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def started(arguments, **environment):
    """Start Python with this repository on its path; its output is piped."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # an empty PYTHONUNBUFFERED is none: output is buffered as it is for users
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **environment},
        # a suite that runs in a shell's background ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_main_job(folder, capsys):
    code, out, err = run(capsys, "--log", "run.h5", "--test", "ids.txt")
    assert code == 0, err
    for part in ("positive = proponent", "Pearson", "Completeness", "test example a14: class"):
        assert part in out
    assert "work.py" in err
    found = Influence.load(folder / "run.influence.h5")
    assert found.test_ids == ["a14", "a17"]
    assert list(found.scores) == ["tracin", "ideal", "tracincp"]
    assert not list(folder.glob("*.partial"))


def test_options_and_json(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(Path("ids.txt").read_text()))
    code, out, err = run(
        capsys,
        *("--log", "run.h5", "--test", "-", "--method", "tracin", "--method", "ideal"),
        *("--checkpoints", "1,3", "--top", 2, "--out", "study.h5", "--ideal-tolerance", "none"),
        *("--task", "work.py:task", "--dtype", "float64", "--json"),
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["attributes"]["methods"] == "tracin ideal"
    assert found["attributes"]["ideal_tolerance"] == "none"
    assert found["attributes"]["gradient_dtype"] == "torch.float64"
    assert len(found["top"]["ideal"][0]["train"]) == 2
    assert (folder / "study.h5").exists()


def test_window_and_blocks(folder, capsys):
    code, out, err = run(
        capsys,
        *("--log", "run.h5", "--test", "ids.txt", "--method", "tracin", "--method", "tracin-sgd"),
        *("--steps", "1:3", "--parameters", "2.*", "--json"),
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["attributes"]["window"] == "1:3"
    assert found["attributes"]["parameters_chosen"] == "2.bias 2.weight"
    assert "elsewhere" in found["completeness"]["tracin"]
    assert Influence.load(folder / "run.influence.h5").steps == [1, 2]


def test_self(folder, capsys):
    code, out, err = run(capsys, "self", "run.h5", "--top", 3)
    assert code == 0, err
    for part in ("Largest self-influence of 14", "own drop", "class", "steps 0:4 of SGD"):
        assert part in out
    assert (folder / "run.self.h5").exists()
    code, _, err = run(capsys, "self", "run.h5")
    assert code == 2
    assert "run.self.h5 exists" in err
    code, out, err = run(capsys, "self", "run.h5", "--overwrite", "--json", "--steps", "0:2")
    assert code == 0, err
    found = json.loads(out)
    assert found["attributes"]["window"] == "0:2"
    assert len(found["self"]) == len(found["own_drop"]) == len(found["train_ids"]) == 14
    assert sum(found["visits"]) == 4


@pytest.mark.parametrize(
    "command",
    [
        ("--log", "run.h5", "--test", "ids.txt", "--method", "tracin"),
        ("--log", "run.h5", "--test", "ids.txt", "--method", "tracin", "--dry-run"),
        ("self", "run.h5"),
        ("verify", "run.h5"),
    ],
    ids=["influence", "dry-run", "self", "verify"],
)
def test_options_reach_the_replay(folder, capsys, monkeypatch, command):
    seen = {}

    class Spy(Replay):
        def __init__(self, log, task, **options):
            seen.update(options, log=log, task=task)
            super().__init__(log, task, **options)

    monkeypatch.setattr("replay.commands.Replay", Spy)
    usual = {"audit": 100, "allow_tf32": False, "values": "float64", "memory": "2GiB"}
    usual |= {"dtype": None, "device": "cpu", "task": None, "log": Path("run.h5")}
    given = {"audit": 7, "allow_tf32": True, "values": "model", "memory": "12MB"}
    given |= {"dtype": torch.float64, "device": "cpu:0", "task": "work.py:task"}
    options = ["--audit", 7, "--allow-tf32", "--values", "model", "--memory", "12MB"]
    options += ["--dtype", "float64", "--device", "cpu:0", "--task", "work.py:task"]
    for some, expected in (([], usual), (options, usual | given)):
        seen.clear()
        code, _, err = run(capsys, *command, *some)
        assert code == 0, err
        del seen["announce"]
        assert seen == expected
        for result in folder.glob("run.*.h5"):
            result.unlink()


def test_runs_say_what_they_took(folder, capsys):
    code, out, err = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--method", "tracin")
    assert code == 0, err
    cost = r"[\d.]+ (s|min|h), peak memory [\d.]+ GB"
    assert re.search(rf"^wrote run.influence.h5; took {cost}$", err, re.MULTILINE)
    assert "took" not in out


def test_verify(folder, capsys):
    before = sorted(folder.iterdir())
    code, out, err = run(capsys, "verify", "run.h5")
    assert code == 0, err
    assert out == "run.h5: steps 0:4 reproduce\n"
    code, out, err = run(capsys, "verify", "run.h5", "--json", "--steps", "1:3")
    assert code == 0, err
    assert json.loads(out) == {"log": "run.h5", "steps": [1, 3], "scaled_outside": {}}
    assert [p for p in sorted(folder.iterdir()) if p.suffix] == [p for p in before if p.suffix]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected --log run.h5 and --test ids.txt"),
        (["--log", "run.h5"], 2, "expected --log run.h5 and --test"),
        (["--log", "none.h5", "--test", "ids.txt"], 2, "there is no log none.h5"),
        (["--log", "work.py", "--test", "ids.txt"], 2, "work.py is not an HDF5 file"),
        (["--log", "run.h5", "--test", "none.txt"], 2, "none.txt cannot be read"),
        (["--log", "run.h5", "--test", "unknown.txt"], 2, "unknown.txt: line 2: the test set"),
        (["--log", "run.h5", "--test", "twice.txt"], 2, "stands already on line 1"),
        (["--log", "run.h5", "--test", "empty.txt"], 2, "expected one test ID a line, found none"),
        (["--log", "run.h5", "--test", "ids.txt", "--method", "trak"], 2, "'trak' is not one of"),
        (["--log", "run.h5", "--test", "ids.txt", "--steps", "3:9"], 2, "steps is a window a:b"),
        (["--log", "run.h5", "--test", "ids.txt", "--steps", "x"], 2, "steps is a window a:b"),
        (["--log", "run.h5", "--test", "ids.txt", "--parameters", "x"], 2, "no parameter matches"),
        (["self", "none.h5"], 2, "there is no log none.h5"),
        (["--log", "run.h5", "--test", "ids.txt", "--checkpoints", "x"], 2, "'x' is not a number"),
        (["--log", "run.h5", "--test", "ids.txt", "--checkpoints", "9,1"], 2, "found step 9"),
        (["--log", "run.h5", "--test", "ids.txt", "--ideal-tolerance", "x"], 2, "neither a number"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "work"], 2, 'named "package.module'),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "no.py:task"], 2, "there is no file"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "nope.x:task"], 2, "does not import"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "work.py:no"], 2, "has no 'no'"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "work.py:other"], 2, "found int"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "bad.py:task"], 2, "ValueError: oops"),
        (["--log", "run.h5", "inspect", "run.h5"], 2, "--log goes without a subcommand"),
        (["--test", "x", "self", "run.h5"], 2, "before 'self'; leave one of the two out."),
        (["--json", "inspect", "run.h5"], 2, "found it before 'inspect'; write it after 'inspect'"),
        (["--steps", "0:2", "self", "run.h5"], 2, "--steps goes without a subcommand, found it"),
        (["--top", "5", "self", "run.h5"], 2, "--top goes without"),  # its default, yet asked for
        (["--log", "run.h5", "--test", "ids.txt", "--device", "foo"], 2, "has cpu), found 'foo'"),
        (["self", "run.h5", "--device", "meta"], 2, "has cpu), found 'meta': "),
        (["self", "run.h5", "--device", "mps"], 2, "a device that computes in float64 (this"),
        (["self", "run.h5", "--device", "cuda:99"], 2, "found 'cuda:99': "),
        (["verify", "none.h5"], 2, "there is no log none.h5"),
        (["verify", "run.h5", "--task", "moved.py:task"], 1, "failed: step 0 of run.h5 does not"),
        (["verify", "run.h5", "--steps", "3:9"], 2, "steps is a window a:b"),
        (["inspect", "none.h5"], 2, "there is no log none.h5"),
        (["--log", "run.h5", "--test", "ids.txt", "--memory", "much"], 2, "memory is a size"),
        (["--log", "run.h5", "--test", "ids.txt", "--audit", "0"], 2, "0 is not in the range x>=1"),
        (["inspect", "run.h5", "--task", "no.py:task"], 2, "there is no file"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "broken.py:task"], 3, "ZeroDivision"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "moved.py:task"], 1, "not reproduce"),
    ],
)
def test_messages_and_exit_codes(folder, capsys, arguments, code, message):
    (folder / "unknown.txt").write_text("a14\nb3\n")
    (folder / "twice.txt").write_text("a14\na15\na14\n")
    (folder / "empty.txt").write_text("# nothing\n\n")
    (folder / "bad.py").write_text("raise ValueError('oops')")
    (folder / "broken.py").write_text(TASK.replace("return nn.f", "1 / 0\n    return nn.f"))
    (folder / "moved.py").write_text(TASK.replace("manual_seed(1)", "manual_seed(2)"))
    found, out, err = run(capsys, *arguments)
    assert found == code, err
    assert message in err
    assert out == ""
    assert not list(folder.glob("*.influence.h5*"))


def test_a_failed_audit_is_a_failed_check(folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise GradientError("step 2: not right any more")

    monkeypatch.setattr(Replay, "influence", fail)
    code, _, err = run(capsys, "--log", "run.h5", "--test", "ids.txt")
    assert code == 1
    assert "Check failed: step 2: not right any more" in err


def test_existing_output_is_an_error_before_the_work(folder, capsys):
    (folder / "run.influence.h5").write_text("precious")
    code, _, err = run(capsys, "--log", "run.h5", "--test", "ids.txt")
    assert code == 2
    assert "run.influence.h5 exists; choose another path or overwrite it" in err
    assert "work.py" not in err
    assert (folder / "run.influence.h5").read_text() == "precious"
    code, _, err = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--overwrite")
    assert code == 0, err


COMMANDS = {
    "main": ("--log", "run.h5", "--test", "ids.txt", "--method", "tracin"),
    "self": ("self", "run.h5"),
}
DISGUISES = {
    "itself": lambda path: path,
    "another spelling": lambda path: path.parent / "sub" / ".." / path.name,
    "symbolic link": lambda path: link(path, os.symlink),
    "hard link": lambda path: link(path, os.link),
    "partial": lambda path: path.rename(path.with_name("x.partial")).with_name("x"),
}


def link(path, how):
    how(path, path.with_name("link.h5"))
    return path.with_name("link.h5")


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES.keys())
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_log_is_never_replaced(folder, capsys, command, disguise):
    (folder / "sub").mkdir()
    kept = (folder / "run.h5").read_bytes()
    out = disguise(folder / "run.h5")
    log = "run.h5" if (folder / "run.h5").exists() else "x.partial"
    command = [log if part == "run.h5" else part for part in command]
    before = sorted(folder.iterdir())
    code, _, err = run(capsys, *command, "--out", out, "--overwrite")
    assert code == 2
    assert f"which is the input {log}; choose another path." in err
    assert "work.py" not in err
    assert (folder / log).read_bytes() == kept
    assert sorted(folder.iterdir()) == before


def test_the_log_of_another_run_is_not_replaced(folder, capsys):
    trace(folder / "other.h5", None)
    kept = (folder / "other.h5").read_bytes()
    code, _, err = run(capsys, *COMMANDS["self"], "--out", "other.h5", "--overwrite")
    assert code == 2
    assert err.endswith("would replace other.h5, a run log; choose another path.\n")
    assert (folder / "other.h5").read_bytes() == kept


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("ids.txt", ()),
        ("work.py", ()),
        ("work.py", ("--task", "work.py:task")),
        ("alone.py", ("--task", "alone:task")),
    ],
)
def test_other_inputs_are_never_replaced(folder, capsys, name, task):
    (folder / "alone.py").write_text(TASK)
    kept = (folder / name).read_text()
    code, _, err = run(capsys, *COMMANDS["main"], *task, "--out", name, "--overwrite")
    assert code == 2
    assert err.startswith(f"Error: the result would replace {name}, which is the input")
    assert (folder / name).read_text() == kept


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_unusable_places_are_found_before_the_work(folder, capsys, command):
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    for out, message in {
        "none/x.h5": "is to stand in none, which is no folder; make it or choose another path.",
        "ids.txt/x.h5": "is to stand in ids.txt, which is no folder",
        "sub": "can only replace a regular file, and sub is a folder; choose another path.",
        "": "and . is a folder",
        "pipe": "and pipe is a device or pipe; choose another path.",
        "x" * 250: "cannot be written: File name too long; choose another path.",
    }.items():
        code, _, err = run(capsys, *command, "--out", out, "--overwrite")
        assert code == 2, out
        assert message in err
        assert "work.py" not in err
        assert "Traceback" not in err
    code, _, err = run(capsys, *command, "--out", "ids.txt")
    assert code == 2


def test_saving_in_python_replaces_no_input(folder):
    replay = Replay("run.h5")
    kept = (folder / "run.h5").read_bytes()
    os.link("run.h5", "link.h5")
    os.mkfifo("pipe")
    for found in (
        replay.influence(["a14"], methods=["tracin"], progress=False),
        replay.self_influence(progress=False),
    ):
        for name in ("run.h5", "link.h5", "work.py"):
            with pytest.raises(InputError, match="which is the input"):
                found.save(name, overwrite=True)
        with pytest.raises(InputError, match="can only replace a regular file, and pipe"):
            found.save("pipe", overwrite=True)
        found.save("study.h5", overwrite=True)
        with pytest.raises(OutputExistsError):
            found.save("study.h5")
    assert (folder / "run.h5").read_bytes() == kept


@pytest.mark.parametrize("standard_input", [False, True])
def test_byte_order_mark(folder, capsys, monkeypatch, standard_input):
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbfa14\r\na17\r\n")
    ids = "-" if standard_input else "bom.txt"
    with (folder / "bom.txt").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        code, out, err = run(
            capsys, "--log", "run.h5", "--test", ids, "--method", "tracin", "--json"
        )
    assert code == 0, err
    assert json.loads(out)["test_ids"] == ["a14", "a17"]


def test_narrow_terminal(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    arguments = ("--log", "run.h5", "--test", "ids.txt", "--overwrite")
    code, narrow, err = run(capsys, *arguments)
    assert code == 0, err
    monkeypatch.setenv("COLUMNS", "80")
    assert run(capsys, *arguments)[1] == narrow
    assert "against tracin" in narrow
    assert "Spearman" in narrow
    monkeypatch.setenv("COLUMNS", "120")
    assert run(capsys, *arguments)[1] != narrow


def test_task_outside_the_current_directory(folder, capsys, monkeypatch):
    outside = folder / "work.py"
    trace(folder / "far.h5", f"{outside}:task")
    inside = folder / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    code, _, err = run(capsys, "--log", "../far.h5", "--test", "../ids.txt")
    assert code == 2
    assert "outside the current directory" in err
    assert f"pass --task {outside}:task" in err
    code, _, err = run(
        capsys, "--log", "../far.h5", "--test", "../ids.txt", "--task", f"{outside}:task"
    )
    assert code == 0, err


def test_log_without_a_task(folder, capsys):
    trace(folder / "bare.h5", None)
    code, _, err = run(capsys, "--log", "bare.h5", "--test", "ids.txt")
    assert code == 2
    assert "names no task; pass one" in err


def test_inspect_imports_nothing(folder, capsys):
    (folder / "work.py").write_text("raise SystemExit('imported')")
    code, out, _ = run(capsys, "inspect", "run.h5")
    assert code == 0
    for part in ("torch.optim.SGD", "4, epochs not set", "5 different, 8 visits", "work.py:task"):
        assert part in out
    assert "learning rate 0.1 " in out
    assert "0.1 to" not in out  # a range only where there is one
    code, out, _ = run(capsys, "inspect", "run.h5", "--json")
    assert json.loads(out)["steps"] == 4


def test_inspect_shows_metadata_as_it_is(folder, capsys):
    with h5py.File("run.h5", "r+") as file:
        for name in ("task", "model", "optimizer", "run_uuid", "device"):
            file.attrs[name] = np.bytes_(f"[/red]{name}[bold]")
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


def test_dry_run_writes_nothing(folder, capsys):
    before = sorted(folder.iterdir())
    code, out, _ = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--dry-run")
    assert code == 0
    assert out.startswith("about ")
    assert "peak memory" in out
    code, out, _ = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--dry-run", "--json")
    assert set(json.loads(out)) == {"seconds", "peak_bytes"}
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {p.name for p in before} - {
        "__pycache__"
    }


def test_every_command_and_option_has_help():
    for command in (cli, *cli.commands.values()):
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (command.name, parameter.name)


def test_help_teaches(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "tracin-replay --log run.h5 --test ids.txt" in out
    assert "inspect" in out


def test_interrupt_while_importing(folder):
    """A module that takes long stands in for torch."""
    (folder / "torch.py").write_text(
        "import time\ntry:\n    print('importing', flush=True)\n    time.sleep(60)\n"
        "except BaseException:\n    pass\n"  # as modules in C do
    )
    for command in (["-m", "replay"], ["-c", "from replay.cli import main; main()"]):
        process = started([*command, "--help"], PYTHONPATH=f"{folder}:{ROOT}")
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert err == INTERRUPTED + "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--log", "run.h5", "--test", "ids.txt"],
        ["--log", "run.h5", "--test", "ids.txt", "--json"],
        ["self", "run.h5"],
        ["inspect", "run.h5"],
    ],
    ids=" ".join,
)
def test_closed_pipe(folder, arguments):
    with started(["-m", "replay", *arguments]) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert process.returncode == 141, err
    assert "Error" not in err
    assert "Exception" not in err


def test_interrupt_leaves_no_file(folder):
    arguments = ["--log", "run.h5", "--test", "ids.txt", "--task", "work.py:slow_task"]
    process = started(["-m", "replay", *arguments])
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert INTERRUPTED in err
    assert not list(folder.glob("*.influence.h5*"))
