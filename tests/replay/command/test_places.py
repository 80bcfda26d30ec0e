"""Where the command line may write: never over its inputs."""

from __future__ import annotations

import errno
import os
import tempfile
from itertools import chain
from pathlib import Path

import pytest

from replay import Influence, Replay
from replay.counterfactual.runs import Runs
from tests.helpers.command import TASK, run, trace
from tests.helpers.results import made
from tracer.errors import InputError, OutputExistsError


@pytest.fixture
def no_work(monkeypatch):
    """Nothing is computed: that would be another error."""
    monkeypatch.setattr("replay.command.jobs.influence.influence_together", None)
    monkeypatch.setattr("replay.command.jobs.self_influence.self_influence_together", None)
    monkeypatch.setattr(Runs, "walk", None)
    monkeypatch.setattr(Replay, "checkpoint_sweep", None)
    monkeypatch.setattr(Replay, "state_dict", None)


def test_existing_output_is_an_error_before_the_work(folder, capsys):
    made().save(folder / "run.influence.h5")
    kept = (folder / "run.influence.h5").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replay.command.jobs.influence.influence_together", None)
        code, _, err = run(capsys, "--log", "run.h5", "--test", "ids.txt")
    assert code == 2
    assert "run.influence.h5 exists; choose another path or overwrite it" in err
    assert (folder / "run.influence.h5").read_bytes() == kept
    code, _, err = run(capsys, "--log", "run.h5", "--test", "ids.txt", "--overwrite")
    assert code == 0, err


ASKED = {
    "influence": ("--test", "ids.txt"),
    "self": (),
    "checkpoints": ("--test", "ids.txt"),
    "counterfactual": ("--test", "ids.txt", "--remove", "train.txt"),
    "export-checkpoint": ("--step", 1),
    "convert": ("--snapshot-every", 2),
}
WRONG = [  # in the order in which it is looked at
    ("--log", "run.h5", "nowhere/run.h5", "there is no log nowhere/run.h5"),
    ("--task", "work.py:task", "work.py:none", "work.py has no 'none'"),
    ("--test", "ids.txt", "train.txt", "train.txt: line 1: the test set has no example 'a3'"),
    ("--remove", "train.txt", "ids.txt", "line 2: the training set has no example 'a14'"),
]


def test_what_is_wrong_is_said_before_an_existing_result(folder, capsys, no_work):
    (folder / "train.txt").write_text("a3\n")
    (folder / "out.pt").write_text("here")
    for command, own in ASKED.items():
        options = ("--log", "run.h5", "--task", "work.py:task", *own, "--out", "out.pt")
        asked = dict(zip(options[::2], options[1::2], strict=True))
        asked |= {option: wrong for option, _, wrong, _ in WRONG if option in asked}
        for option, right, _, said in [row for row in WRONG if row[0] in asked]:
            code, _, err = run(capsys, command, *chain(*asked.items()))
            assert (code, said in err, "out.pt" in err) == (2, True, False), (command, err)
            asked[option] = right
        code, _, err = run(capsys, command, *chain(*asked.items()))
        assert (code, "out.pt" in err) == (2, True), (command, err)
        assert (folder / "out.pt").read_text() == "here"


COMMANDS = {
    "main": ("--log", "run.h5", "--test", "ids.txt", "--method", "tracin"),
    "self": ("self", "run.h5"),
}
DISGUISES = {
    "itself": lambda path: path,
    "another spelling": lambda path: path.parent / "sub" / ".." / path.name,
    "symbolic link": lambda path: link(path, os.symlink),
    "hard link": lambda path: link(path, os.link),
}


def link(path, how):
    how(path, path.with_name("link.h5"))
    return path.with_name("link.h5")


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES.keys())
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_log_is_never_replaced(folder, capsys, no_work, command, disguise):
    (folder / "sub").mkdir()
    kept = (folder / "run.h5").read_bytes()
    out = disguise(folder / "run.h5")
    before = sorted(folder.iterdir())
    code, _, err = run(capsys, *command, "--out", out, "--overwrite")
    assert code == 2
    assert "which is the input run.h5; choose another path." in err
    assert (folder / "run.h5").read_bytes() == kept
    assert sorted(folder.iterdir()) == before


def test_a_result_of_the_other_kind_is_not_replaced(folder, capsys, no_work):
    made().save(folder / "x.h5")
    code, _, err = run(capsys, *COMMANDS["self"], "--out", "x.h5", "--overwrite")
    assert code == 2
    assert "x.h5, which holds influence; a result replaces its own kind only" in err


def test_the_work_is_not_lost_with_a_full_disk(folder, capsys, monkeypatch, tmp_path_factory):
    """What cannot be written to its place is saved elsewhere, since the process ends."""
    elsewhere, link = tmp_path_factory.mktemp("elsewhere"), os.link
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def full(source, target):
        if elsewhere not in target.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        link(source, target)

    monkeypatch.setattr(os, "link", full)
    code, _, err = run(capsys, *COMMANDS["main"])
    assert code == 2
    assert "run.influence.h5 could not be written: No space left on device (" in err
    spare = Path(err.split("It was saved as ")[1].split(" instead.")[0])
    assert Influence.load(spare).test_ids
    assert not list(folder.glob("run.influence.h5*"))


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
    assert f"Error: the result would replace {name}, which " in err
    assert (folder / name).read_text() == kept


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_unusable_places_are_found_before_the_work(folder, capsys, no_work, command):
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    for out, message in {
        "none/x.h5": "cannot write none/x.h5: there is no folder none. Create it or choose",
        "ids.txt/x.h5": "cannot write ids.txt/x.h5: there is no folder ids.txt",
        "sub": "can only replace a regular file, and sub is a folder; choose another path.",
        "": "and . is a folder",
        "pipe": "and pipe is a device or pipe; choose another path.",
        "x" * 250: "cannot be written: File name too long; choose another path.",
    }.items():
        code, _, err = run(capsys, *command, "--out", out, "--overwrite")
        assert code == 2, out
        assert message in err
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
        name = f"{type(found).__name__}.h5"
        found.save(name, overwrite=True)
        with pytest.raises(OutputExistsError):
            found.save(name)
    assert (folder / "run.h5").read_bytes() == kept
