"""Reading while a run is open, and how a run ends."""

from __future__ import annotations

import io
import time

import pytest
import torch

from tests.helpers.wrapping import X, backward, build, sgd
from tracer import TracingSGD, open_log
from tracer.errors import LogWarning, TracingWarning


def test_model_can_be_saved_and_hooks_are_removed(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0])
        optimizer.step(batch_ids=[0])
        buffer = io.BytesIO()
        torch.save(model, buffer)
    buffer.seek(0)
    clone = torch.load(buffer, weights_only=False)
    clone(X).sum().backward()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_live_reading_and_flush(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        for t in range(3):
            optimizer.zero_grad()
            backward(model, [t])
            optimizer.step(batch_ids=[t])
            optimizer.flush()
            with open_log(path) as log:
                assert len(log) == t + 1
                assert log.metadata["closed"] is False
                assert torch.equal(log.parameters(t + 1)["0.weight"], model[0].weight)
            with torch.no_grad():
                model[0].weight.mul_(0.5)  # after the flush: the row is put right
    with open_log(path) as log:
        assert len(log) == 3
        assert torch.equal(log.parameters(3)["0.weight"], model[0].weight)
        assert log.metadata["closed"] is True


def test_the_last_step_is_not_missing_silently(path):
    """It is written when its parameters are final; a notebook reads the log before that."""
    model = build()
    optimizer = TracingSGD(sgd(model), model, path)
    for t in range(3):
        backward(model, [t])
        optimizer.step(batch_ids=[t])
    writer = optimizer._log.channel._thread
    while writer.committed < 2:
        time.sleep(0.01)
    said = r"written by this process: it has 2 steps so far of the 3 that were taken.*Call flush"
    with pytest.warns(LogWarning, match=said) as caught, open_log(path) as log:
        assert (len(log), log.live) == (2, True)
    assert caught[0].filename == __file__
    optimizer.flush()
    with open_log(path) as log:
        assert len(log) == 3
    optimizer.close()


def test_a_log_without_a_step_is_said(path):
    """Nobody stepped the wrapper; an exception is said by itself."""
    model = build()
    optimizer = TracingSGD(sgd(model), model, path)
    backward(model, [0])
    with pytest.warns(TracingWarning, match=r"without a step.\n1. Call step.* of this"):
        optimizer.close()
    optimizer.close()
    with pytest.raises(ZeroDivisionError), TracingSGD(sgd(model), model, path, overwrite=True):
        raise ZeroDivisionError


def interrupted(model, path):
    """Train until Ctrl-C after the second step."""
    with TracingSGD(sgd(model), model, path) as optimizer:
        for t in range(3):
            backward(model, [t])
            optimizer.step(batch_ids=[t])
            if t == 1:
                raise KeyboardInterrupt


def test_exception_in_the_loop_keeps_what_was_done(path):
    model = build()
    with pytest.raises(KeyboardInterrupt):
        interrupted(model, path)
    with open_log(path) as log:
        assert len(log) == 2
        assert log.metadata["closed"] is True


def test_forgotten_close(path):
    model = build()
    optimizer = TracingSGD(sgd(model), model, path)
    backward(model, [0])
    optimizer.step(batch_ids=[0])
    del optimizer
    with open_log(path) as log:
        assert len(log) == 1
        assert log.metadata["closed"] is True
