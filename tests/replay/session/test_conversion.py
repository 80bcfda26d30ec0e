"""The same run in another log, and its states as checkpoints."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from replay import Replay
from replay.command.program import run as program
from tests.helpers.sparse import STEPS, task, trace
from tests.helpers.training import script
from tracer import open_log
from tracer.errors import InputError, MismatchError


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "run.h5"
    trace(path, "cnn", "adamw", snapshot_every=1, clip="inside", parts=2)
    return path


def test_there_and_back(dense, tmp_path):
    expected = Replay(dense, task("cnn")).influence([0, 3], progress=False).scores
    for every, states in ((5, [0, 5, 10, STEPS]), ("epoch", [0, 5, 10, STEPS]), (100, [0, STEPS])):
        sparse, again = tmp_path / f"{every}.h5", tmp_path / f"{every}-dense.h5"
        run = Replay(dense, task("cnn"))
        run.convert(sparse, snapshot_every=every)
        found = Replay(sparse, task("cnn"))
        assert found.log.states() == states
        assert [found.log.state(t)["epoch"] for t in states[1:-1]] == [0, 1][: len(states) - 2]
        for method, scores in found.influence([0, 3], progress=False).scores.items():
            assert np.array_equal(scores, expected[method])
        found.convert(again, snapshot_every=1)
        with open_log(again) as log, open_log(dense) as first:
            assert log.is_dense
            assert log.metadata["run_uuid"] == first.metadata["run_uuid"]
            for t in range(STEPS + 1):
                w = first.parameters(t)
                assert all(torch.equal(v, w[n]) for n, v in log.parameters(t).items())


def test_what_is_not_the_run_is_not_written(dense, tmp_path):
    right = task("cnn")
    wrong = dataclasses.replace(right, train=[(x, (y + 1) % 3) for x, y in right.train])
    target = tmp_path / "other.h5"
    with pytest.raises(MismatchError, match=r"step 0 of .* does not lead to the parameters"):
        Replay(dense, wrong).convert(target, snapshot_every=5)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="snapshot_every must be a whole number from 1 on"):
        Replay(dense, right).convert(target, snapshot_every=0)


def test_a_run_goes_on_from_states_of_its_own(dense, tmp_path):
    path = tmp_path / "run.h5"
    Replay(dense, task("cnn")).convert(path, snapshot_every=5)
    trace(path, "cnn", "adamw", snapshot_every=5, resume=True, clip="inside", parts=2, steps=0)
    with open_log(path) as log:
        assert len(log) == STEPS  # from the last state, not from a computed one


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_state_is_a_checkpoint(dense, tmp_path, ending):
    target = tmp_path / f"model.{ending}"
    state = Replay(dense, task("cnn")).state_dict(7)
    run = f"export-checkpoint {dense} --step 7 --task tests.helpers.sparse:CNN --out {target}"
    if ending == "pt":
        assert program(run.split()) == 0
        found = torch.load(target, weights_only=True)
        model = task("cnn").model()
        model.load_state_dict(found)
        assert all(torch.equal(found[name], value) for name, value in state.items())
        with open_log(dense) as log:
            assert torch.equal(found["1.weight"], log.parameters(7)["1.weight"])
    else:
        library = pytest.importorskip("safetensors.torch")
        assert program(run.split()) == 0
        assert all(torch.equal(library.load_file(target)[n], v) for n, v in state.items())


def test_the_command(dense, tmp_path, capsys):
    sparse = tmp_path / "small.h5"
    how = ["--task", "tests.helpers.sparse:CNN"]
    assert program(["convert", str(dense), "--snapshot-every", "5", "-o", str(sparse), *how]) == 0
    assert "wrote" in capsys.readouterr().err
    assert program(["convert", str(dense), "--snapshot-every", "x", "-o", str(sparse), *how]) == 2
    assert program(["verify", str(sparse), *how]) == 0
    assert re.search(rf"proved bit for bit +(all )?{STEPS}", capsys.readouterr().out)


def test_a_disk_that_fills_up(dense, tmp_path):
    """In a process of its own: HDF5 would end it."""
    target = tmp_path / "small.h5"
    code = f"""
        import resource
        from replay import Replay
        from tests.helpers.sparse import CNN
        from tracer.errors import InputError
        run = Replay({str(dense)!r}, CNN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        try:
            run.convert({str(target)!r}, snapshot_every=1)
        except InputError as error:
            print("said", error)
    """
    done = script(code)
    assert (done.returncode, done.stdout[:4]) == (0, "said"), done.stderr
    assert not list(tmp_path.iterdir())
