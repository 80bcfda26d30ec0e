"""Exceptions and forgotten closes: the log ends with its last whole step."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.training import Run, script
from tracer import open_log


def test_exception_closes_the_log(tmp_path):
    path = tmp_path / "run.h5"
    with pytest.raises(RuntimeError, match="mine"), Run(path).optimizer as optimizer:
        model = optimizer._log.model
        for t in range(3):
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step(batch_ids=list(range(5)))
            if t == 2:
                raise RuntimeError("mine")
    with open_log(path) as log:
        assert (len(log), log.metadata["closed"]) == (3, True)
        assert log.states() == [0, 3]


def test_exception_inside_the_step_keeps_the_last_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    run = Run(path).train(4)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}

    def half(*_, **__):
        with torch.no_grad():
            run.model[0].weight.add_(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.inner, "step", half)
    with pytest.raises(KeyboardInterrupt):
        run.step()
    run.close()
    with open_log(path) as log:
        assert len(log) == 4
        assert log.states() == [0]
        assert all(torch.equal(p, before[n]) for n, p in log.parameters(4).items())


def test_forgotten_close(tmp_path):
    path = tmp_path / "run.h5"
    done = script(
        "import sys; from tests.helpers.training import Run; run = Run(sys.argv[1]).train(5)", path
    )
    assert done.returncode == 0, done.stderr
    with open_log(path) as log:
        assert (len(log), log.metadata["closed"]) == (5, True)


INSIDE = """
import gc, sys, threading
from h5py._objects import phil
from tests.helpers.training import Run
from tracer import open_log
gone, done = threading.Event(), threading.Event()
def train():
    held = [Run(sys.argv[1]).train(5)]
    held.append(held)  # for the collector
    if sys.argv[2] == "writer":
        job = lambda writer: (gone.wait(), gc.collect(), done.set())
        held[0].optimizer._log.channel.submit(job)
gc.disable()
train()
if sys.argv[2] == "hdf5":
    with phil:  # as in a call of HDF5, where the collector may run
        gc.collect()
else:  # by the log's own writer thread
    gone.set()
    done.wait()
for thread in threading.enumerate():
    if thread.name == "tracer-closing":
        thread.join()
with open_log(sys.argv[1]) as log:
    print(len(log), log.metadata["closed"])
"""


@pytest.mark.parametrize("where", ["hdf5", "writer"])
def test_collected_anywhere(tmp_path, where):
    done = script(INSIDE, tmp_path / "run.h5", where)
    assert done.stdout == "5 True\n", done.stderr
    assert "Error" not in done.stderr
