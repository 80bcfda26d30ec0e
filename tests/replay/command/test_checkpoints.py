"""The command that sweeps over checkpoints."""

from __future__ import annotations

import json

from replay import CheckpointSweep
from replay.results.checkpoint_sweep import ERRORS
from tests.helpers.command import run


def test_the_command(folder, capsys):
    code, out, err = run(capsys, "checkpoints", "run.h5", "--test", "ids.txt", "--counts", "1,2")
    assert code == 0, err
    assert "Sums over checkpoints against ideal: median over 2 test examples" in out
    for word in ("even 1", "rate 2", "Pearson", "scaled", "ratio of"):
        assert word in out
    assert "epochs" not in out
    assert max(map(len, out.splitlines())) <= 80
    stored = CheckpointSweep.load(folder / "run.checkpoints.h5")
    code, out, err = run(
        capsys, "checkpoints", "run.h5", "--test", "ids.txt", "--counts", "1,2", "--json",
        "--overwrite",
    )  # fmt: skip
    found = json.loads(out)
    assert [one["steps"] for one in found["choices"]] == [list(one.steps) for one in stored.choices]
    assert found["errors"]["tracin"]["pearson"] == stored.errors["tracin"]["pearson"].tolist()
    assert list(found["errors"]["ideal"]) == list(ERRORS)
    code, out, err = run(capsys, "checkpoints", "run.h5", "--test", "ids.txt", "--counts", "x")
    assert (code, "'x' is not a list of numbers like 1,5,20." in err) == (2, True)
