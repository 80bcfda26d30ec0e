"""Commands are alike: how each is told its log and its test examples."""

from __future__ import annotations

import json
import re

import pytest

from replay import Influence
from replay.command.program import COMMANDS, cli
from replay.methods.names import NAMES
from tests.helpers.command import run, started

ONE = ("--method", "tracin", "--json")
TOLD = {  # beside the log
    "influence": ("--test", "ids.txt", *ONE),
    "counterfactual": ("--test", "ids.txt", "--subsets", 2, "--json"),
    "checkpoints": ("--test", "ids.txt", "--counts", "2", "--json"),
    "convert": ("--snapshot-every", 2, "--out", "other.h5", "--json"),
    "export-checkpoint": ("--step", 1, "--out", "other.pt", "--json"),
}


TAKE_LOGS = [one for one in COMMANDS if any(option.name == "log" for option in one.params)]


@pytest.mark.parametrize("command", TAKE_LOGS, ids=lambda command: command.name)
def test_every_command_takes_the_log_in_two_ways(folder, capsys, command):
    tests, found = TOLD.get(command.name, ("--json",)), []
    for log in (("run.h5",), ("--log", "run.h5")):
        code, out, err = run(capsys, command.name, *log, *tests)
        assert code == 0, err
        found.append(json.loads(out))
        for result in (*folder.glob("run.*.h5"), *folder.glob("other.*")):
            result.unlink()
    assert found[0] == found[1]
    code, _, err = run(capsys, command.name, "run.h5", "--log", "run.h5", *tests)
    assert (code, "named twice, run.h5 and --log run.h5; name it once" in err) == (2, True)
    code, _, err = run(capsys, command.name, *tests)
    assert (code, "expected a run log: --log run.h5, or its path after" in err) == (2, True)
    assert not list(folder.glob("run.*.h5"))


@pytest.mark.parametrize("command", TAKE_LOGS, ids=lambda command: command.name)
def test_options_stand_after_the_command(folder, capsys, command):
    code, out, err = run(capsys, "--log", "run.h5", command.name)
    assert (code, out) == (2, "")
    assert f"put it after: tracin-replay {command.name} --log ..." in err


@pytest.mark.parametrize("name", [(), ("influence",)], ids=["default", "by name"])
def test_test_examples_in_three_ways(folder, capsys, name):
    chosen = ("--test-id", "a17", "--test-id", "a14")
    for told, expected in (
        (("--test", "ids.txt"), ["a14", "a17"]),
        (chosen, ["a17", "a14"]),
        (("--test", "all"), [f"a{k}" for k in range(14, 20)]),
    ):
        code, out, err = run(capsys, *name, "--log", "run.h5", *told, *ONE, "--overwrite")
        assert code == 0, err
        assert json.loads(out)["test_ids"] == expected
        assert Influence.load(folder / "run.influence.h5").test_ids == expected
    for told, message in (
        (("--test", "ids.txt", *chosen), "--test and --test-id exclude each other"),
        (("--test-id", "a14", "--test-id", "a14"), "--test-id 'a14' is given twice"),
        (
            ("--test-id", "a3"),
            "--test-id 'a3': the test set has no such example; its 6 IDs",
        ),
        (("--test-id", "a14 # x"), "the test set has no such example"),  # no comments here
        ((), "expected test examples: --test ids.txt, --test all or --test-id ID"),
    ):
        code, out, err = run(capsys, *name, "--log", "run.h5", *told, *ONE, "--overwrite")
        assert (code, out) == (2, "")
        assert message in err


def test_ids_have_the_type_of_the_keys(folder, capsys):
    text = (folder / "work.py").read_text()
    numbers = "\ntask = Task(build, loss, train, dict(enumerate(test.values())))\n"
    (folder / "numbers.py").write_text(text + numbers)
    task = ("--task", "numbers.py:task")
    code, out, err = run(capsys, "--log", "run.h5", "--test-id", 3, *ONE, *task)
    assert code == 0, err
    assert json.loads(out)["test_ids"] == [3]


def test_a_file_called_all(folder, capsys):
    (folder / "all").write_text("a15\n")
    _, out, _ = run(capsys, "--log", "run.h5", "--test", "./all", *ONE)
    assert json.loads(out)["test_ids"] == ["a15"]


def test_the_main_job_has_a_name(folder, capsys):
    told = ("--log", "run.h5", "--test", "ids.txt", "--json", "--overwrite")
    plain, named = run(capsys, *told), run(capsys, "influence", *told)
    assert plain[:2] == named[:2]
    options = [{o for p in c.params for o in p.opts} for c in (cli, cli.commands["influence"])]
    assert options[0] - {"--version"} == options[1] - {"place"}


def test_a_log_in_the_place_of_a_command(folder, capsys):
    code, _, err = run(capsys, "run.h5", "--test", "ids.txt")
    assert code == 2
    names = ", ".join(command.name for command in COMMANDS)
    assert f"there is no command 'run.h5', only {names}." in err
    assert "tracin-replay --log run.h5 --test ids.txt" in err


@pytest.mark.parametrize("name", [(), *((command.name,) for command in COMMANDS)])
def test_help(folder, capsys, name):
    code, out, _ = run(capsys, *name, "--help")
    assert code == 0
    assert run(capsys, *name, "-h")[1] == out
    assert "Examples:\n    tracin-replay" in out
    assert name or "Without a command, this is 'influence'" in out
    assert "...\n" not in out.partition("Commands:")[2].partition("Examples:")[0]  # none is cut off
    if name in ((), ("influence",)):
        told = " ".join(out.split())
        for method in NAMES.values():
            assert f"{method.name} {method.summary}" in told
    assert max(map(len, out.splitlines())) <= 90


def test_examples_in_help_are_usable(capsys):
    """Each example names options that its command has."""
    for command in (cli, *COMMANDS):
        known = {option for one in command.params for option in one.opts}
        for line in re.findall(rf"^  tracin-replay {command.name} .*$", command.epilog, re.M):
            assert set(re.findall(r"--[\w-]+", line)) <= known, line


def test_python_m_replay_is_the_same_program(folder, capsys):
    _, out, _ = run(capsys, "--help")
    with started(["-m", "replay", "--help"], COLUMNS="80") as process:
        assert process.communicate()[0] == out
    with started(["-m", "replay", "inspect", "none.h5"]) as process:
        assert "there is no log none.h5" in process.communicate()[1]
    assert process.returncode == 2
