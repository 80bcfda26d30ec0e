"""A run that goes on where its user has a checkpoint: at a full state that was asked for."""

from __future__ import annotations

import os

import pytest
import torch

from tests.helpers.training import Run
from tracer import open_log
from tracer.errors import TracingError


def killed(path, *, every, resume=False):
    """Train with a checkpoint after step 7, and be gone after step 9."""
    child = os.fork()
    if child == 0:
        run = Run(path, snapshot_every=every, resume=resume)
        if not resume:
            run.train(7).optimizer.flush(state=True)
        run.train(9).optimizer.flush()
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("every", [1, 4])
def test_a_run_goes_on_where_it_was_flushed_with_its_state(tmp_path, every, capfd):
    path, whole = tmp_path / "run.h5", tmp_path / "whole.h5"
    expected = Run(whole, snapshot_every=every).train(12)
    expected.close()
    killed(path, every=every)
    with pytest.warns(match="was not closed"), open_log(path) as log:
        assert len(log) == 9
        assert 7 in log.states()
    with pytest.raises(TracingError, match=r"at step 6: it has no whole state .*7.*\n1\. Resume"):
        Run(path, snapshot_every=every, resume=6)
    capfd.readouterr()
    run = Run(path, snapshot_every=every, resume=7)
    assert "at step 7, the full state that was asked for; 2 later" in capfd.readouterr().err
    run.train(12).close()
    pairs = zip(run.model.parameters(), expected.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with open_log(path) as ours, open_log(whole) as theirs:
        assert [ours.batch_ids(t) for t in range(12)] == [theirs.batch_ids(t) for t in range(12)]
