"""What needs no torch comes at once: help, completion, the names of both packages."""

from __future__ import annotations

import pytest

from tests.helpers.command import started

HEAVY = "{'torch', 'numpy', 'h5py', 'rich', 'matplotlib'}"
CODE = f"""
import atexit, sys
import replay, tracer, tracer.errors
assert "Replay" in dir(replay) and "TracingSGD" in dir(tracer) and tracer.__version__
atexit.register(lambda: print({HEAVY} & {{*sys.modules}} or "light"))
sys.argv = ["tracin-replay", *sys.argv[1:]]
from replay.command.entry import main
main()
"""
COMPLETION = {"_TRACIN_REPLAY_COMPLETE": "bash_complete", "COMP_CWORD": "3"}


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--help"], {}, "Usage: tracin-replay [OPTIONS] [COMMAND]"),
        (["influence", "--help"], {}, "tracincp    the paper's checkpoint heuristic"),
        ([], {**COMPLETION, "COMP_WORDS": "tracin-replay influence --method tr"}, "tracin-sgd"),
    ],
    ids=["help", "a command's help", "completion"],
)
def test_nothing_heavy_is_imported(arguments, environment, expected):
    with started(["-c", CODE, *arguments], **environment) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert expected in out
    assert out.splitlines()[-1] == "light"


def test_names_that_are_none():
    import replay
    import tracer

    for package in (replay, tracer):
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute"):
            _ = package.none
        assert set(package.__all__) <= set(dir(package))
    assert tracer.records.ID  # a module that nothing has imported by this name
