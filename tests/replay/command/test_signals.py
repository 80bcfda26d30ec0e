"""Ctrl-C and closed pipes: exit codes, and no half-written file."""

from __future__ import annotations

import signal
import time

import pytest

from tests.helpers.command import started
from tests.helpers.places import ROOT

INTERRUPTED = "Interrupted; no file was written unless a line above says so."


def test_interrupt_while_importing(folder):
    """A module that takes long stands in for torch, which help does without."""
    (folder / "torch.py").write_text(
        "import time\ntry:\n    print('importing', flush=True)\n    time.sleep(60)\n"
        "except BaseException:\n    pass\n"  # as modules in C do
    )
    for command in (["-m", "replay"], ["-c", "from replay.command.entry import main; main()"]):
        with started([*command, "--help"], PYTHONPATH=f"{folder}:{ROOT}") as helped:
            assert helped.communicate()[0].startswith("Usage: ")
        process = started([*command, "inspect", "run.h5"], PYTHONPATH=f"{folder}:{ROOT}")
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
        ["inspect", "run.h5"],
        ["--help"],
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
