"""The command line: results, options, messages, exit codes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import click
import pytest
import torch

from replay import Influence, Replay
from replay.command.program import cli
from replay.session import together
from tests.helpers.command import TASK, run, trace
from tracer.errors import GradientError


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


def test_scores_in_json_and_in_files_of_other_programs(folder, capsys):
    code, out, err = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--by", 2, "--json")
    assert code == 0, err
    stored, found = Influence.load(folder / "run.influence.h5"), json.loads(out)
    assert stored.periods == [0, 2]
    assert found["train_ids"] == stored.train_ids
    assert {m: s.tolist() for m, s in stored.scores.items()} == found["scores"]
    code, out, err = run(capsys, "export", "run.influence.h5", "scores.json")
    assert (code, out, err) == (0, "", "wrote scores.json\n")
    written = json.loads((folder / "scores.json").read_text())
    assert written["scores"] == found["scores"]
    code, out, err = run(capsys, "export", "run.influence.h5", "scores.csv", "--json")
    assert json.loads(out) == {
        "out": "scores.csv", "methods": list(stored.scores), "test": 2, "train": 14
    }  # fmt: skip
    for told, message in (
        (("run.h5", "x.csv"), "run.h5 is a run log, not a result; read it with tracer.open_log"),
        (("run.influence.h5", "scores.csv"), "scores.csv exists; choose another path or overwrite"),
        (
            ("run.influence.h5", "x.xlsx"),
            "expected a file that ends in .csv, .parquet, .npz, .json",
        ),
    ):
        code, out, err = run(capsys, "export", *told)
        assert (code, out) == (2, "")
        assert message in err


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
    code, out, err = run(capsys, "export", "run.self.h5", "self.csv", "--json")
    assert (code, json.loads(out)["methods"]) == (0, ["self", "own_drop", "loss"]), err
    header, *rows = (folder / "self.csv").read_text().splitlines()
    assert (header, len(rows)) == ("train,self,own_drop,loss,visits", 14)
    code, _, err = run(capsys, "report", "run.self.h5")
    said = "1. Let the page show both: tracin-replay report run.influence.h5 --self run.self.h5;"
    assert (code, said in err) == (2, True)


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

    monkeypatch.setattr("replay.command.jobs.opening.Replay", Spy)
    usual = {"audit": 100, "allow_tf32": False, "values": "float64", "memory": "2GiB"}
    usual |= {"match_environment": False, "threads": None}
    usual |= {"dtype": None, "device": "cpu", "task": None, "log": Path("run.h5")}
    given = {"audit": 7, "allow_tf32": True, "values": "model", "memory": "12MB"}
    given |= {"threads": 1, "dtype": torch.float64, "device": "cpu:0", "task": "work.py:task"}
    options = ["--audit", 7, "--allow-tf32", "--values", "model", "--memory", "12MB"]
    options += ["--threads", 1, "--dtype", "float64", "--device", "cpu:0", "--task", "work.py:task"]
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
    rows = [line.split(maxsplit=1)[0] for line in out.splitlines()]
    assert rows == ["log", "compared", "reproduce", "proved", "largest", "first"]
    assert re.search(r"compared +steps 0:4 *\nreproduce +all 4 *\n", out)
    assert max(map(len, out.splitlines())) <= 80
    code, out, err = run(capsys, "verify", "run.h5", "--json", "--steps", "1:3")
    assert code == 0, err
    found = json.loads(out)
    assert found.pop("largest_deviation") < 1e-6
    assert found == {
        "log": "run.h5",
        "steps": [1, 3],
        "compared": 2,
        "reproduce": True,
        "finding": None,
        "first_step_that_differs": None,
        "scaled_outside": {},
        "update_checked": True,
        "proof": None,
    }
    assert [p for p in sorted(folder.iterdir()) if p.suffix] == [p for p in before if p.suffix]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected a run log: --log run.h5, or its path after the command"),
        (["--log", "run.h5"], 2, "expected test examples: --test ids.txt, --test all or"),
        (["--log", "none.h5", "--test", "ids.txt"], 2, "there is no log none.h5"),
        (["--log", "work.py", "--test", "ids.txt"], 2, "work.py is not an HDF5 file"),
        (["--log", ".", "--test", "ids.txt"], 2, ". is not a file; expected a run log"),
        (["--log", "run.h5", "--test", "none.txt"], 2, "none.txt' cannot be read"),
        (["--log", "run.h5", "--test", "run.h5"], 2, "run.h5' is not a text in UTF-8, but a list"),
        (["--log", "run.h5", "--test", "unknown.txt"], 2, "unknown.txt: line 2: the test set"),
        (["--log", "run.h5", "--test", "twice.txt"], 2, "stands already on line 1"),
        (["--log", "run.h5", "--test", "empty.txt"], 2, "expected one test ID a line, found none"),
        (["--log", "run.h5", "--test", "ids.txt", "--method", "trak"], 2, "'trak' is not one of"),
        (["--log", "run.h5", "--test", "ids.txt", "--by", "x"], 2, "'x' is not epoch, step or a"),
        (
            ["--log", "run.h5", "--test", "ids.txt", "--method", "self"],
            2,
            "tracin-replay self run.h5",
        ),
        (["--log", "run.h5", "--test", "ids.txt", "--steps", "3:9"], 2, "steps is a window a:b"),
        (["--log", "run.h5", "--test", "ids.txt", "--steps", "x"], 2, "steps is a window a:b"),
        (["--log", "run.h5", "--test", "ids.txt", "--parameters", "x"], 2, "no parameter matches"),
        (["self", "none.h5"], 2, "there is no log none.h5"),
        (["--log", "run.h5", "--test", "ids.txt", "--checkpoints", "x"], 2, "'x' is not a number"),
        (["--log", "run.h5", "--test", "ids.txt", "--checkpoints", "9,1"], 2, "found step 9"),
        (["--log", "run.h5", "--test", "ids.txt", "--ideal-tolerance", "x"], 2, "neither a number"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "work"], 2, "mean work.py:task?"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "no.py:task"], 2, "there is no file"),
        (
            ["--log", "run.h5", "--test", "ids.txt", "--task", "nope.x:task"],
            2,
            "importing nope.x failed",
        ),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "work.py:no"], 2, "has no 'no'"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "work.py:other"], 2, "found int"),
        (["--log", "run.h5", "--test", "ids.txt", "--task", "bad.py:task"], 2, "ValueError: oops"),
        (
            ["--log", "run.h5", "inspect", "run.h5"],
            2,
            "put it after: tracin-replay inspect --log ...",
        ),
        (
            ["--test", "x", "self", "run.h5"],
            2,
            "before the command 'self'; leave one of the two out.",
        ),
        (
            ["--json", "inspect", "run.h5"],
            2,
            "--json was given before the command 'inspect'; put it",
        ),
        (
            ["--steps", "0:2", "self", "run.h5"],
            2,
            "--steps was given before the command 'self'; put",
        ),
        (
            ["--top", "5", "self", "run.h5"],
            2,
            "put it after: tracin-replay self --top",
        ),  # its default, yet asked for
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
    assert out == "" or (arguments[0], code) == ("verify", 1)  # whose table is printed all the same
    assert not list(folder.glob("*.influence.h5*"))


def test_a_failed_audit_is_a_failed_check(folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise GradientError("step 2: not right any more")

    monkeypatch.setattr(together, "answered", fail)
    code, _, err = run(capsys, "--log", "run.h5", "--test", "ids.txt")
    assert code == 1
    assert "Check failed: step 2: not right any more" in err


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
    for name in ("logs", "inside"):
        (folder / name).mkdir()
    trace(folder / "logs" / "far.h5", f"{outside}:task")
    monkeypatch.chdir(folder / "inside")
    code, _, err = run(capsys, "--log", "../logs/far.h5", "--test", "../ids.txt")
    assert code == 2
    assert "outside the current directory" in err
    assert f"pass --task {outside}:task" in err
    code, _, err = run(
        capsys, "--log", "../logs/far.h5", "--test", "../ids.txt", "--task", f"{outside}:task"
    )
    assert code == 0, err


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


def test_threads(folder, capsys):
    asked = ("--log", "run.h5", "--test", "ids.txt", "--method", "tracin")
    told = " ".join(run(capsys, *asked, "--threads", 2)[1].split())
    assert "cpu, 2 threads (as asked for), torch" in told
    told = " ".join(run(capsys, *asked, "--overwrite")[1].split())
    assert "cpu, 1 thread (torch's number), torch" in told
    assert (
        run(capsys, *asked, "--threads", 2, "--dry-run")[1].splitlines()[0].endswith(", 2 threads")
    )
    told = run(capsys, *asked, "--threads", 2, "--dry-run", "--json")[1]
    assert json.loads(told)["threads"] == 2
    assert run(capsys, *asked, "--threads", 0)[0] == 2
    assert torch.get_num_threads() == 1
