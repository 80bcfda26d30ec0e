"""Runs of several snapshots in a process that knows nothing of the training; walks backwards."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.states.execution import Execution
from replay.states.points import Points
from tests.helpers.sparse import loss, task, trace
from tests.helpers.training import script
from tracer import TracingSGD, open_log

STEPS = 40
ALONE = """
    import hashlib, sys, zlib
    from replay import Replay
    from tests.helpers.sparse import task
    for path in sys.argv[1:]:
        run, found = Replay(path, task("cnn")), hashlib.sha256()
        for t in range(len(run.log) + 1):
            state = run.state_dict(t)
            found.update(b"".join(state[name].numpy().tobytes() for name in sorted(state)))
        result = run.influence([0, 3], methods=["tracin", "tracincp"], progress=False)
        for method in ("tracin", "tracincp"):
            found.update(result.scores[method].tobytes())
        print(found.hexdigest(), result.attributes.get("steps_not_proved", 0))
"""


def test_a_fresh_process_finds_the_same_bits(tmp_path):
    """All states and all scores, whatever the distance of snapshots."""
    paths = []
    for every in (1, 7, 32, STEPS):
        paths.append(tmp_path / f"{every}.h5")
        how = {"clip": "inside", "parts": 2, "steps": STEPS}
        trace(paths[-1], "cnn", "adamw", snapshot_every=every, **how)
    done = script(ALONE, *paths)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 4
    assert set(lines) == {lines[0]}
    assert lines[0].endswith(" 0")


@contextlib.contextmanager
def two_threads():
    """Add products up in another order, if this machine does so."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def lower_precision():
    """Round products, if this machine can."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def wide(path, every):
    """Trace steps whose products are large enough for several threads."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 784, generator=generator), torch.arange(600) % 10
    data = list(zip(x, y, strict=True))

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))

    model = build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with TracingSGD(sgd, model, path, snapshot_every=every) as optimizer:
        for t in range(4):
            ids = [(17 * t + 7 * k) % 600 for k in range(256)]
            optimizer.zero_grad()
            loss(model, (x[ids], y[ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    return Task(build, loss, data, data[:2])


@pytest.mark.parametrize("otherwise", [two_threads, lower_precision])
def test_a_process_that_adds_up_otherwise(tmp_path, otherwise):
    """Where that changes bits, it is found, measured, said; scores are as near as the drift."""
    of = wide(tmp_path / "dense.h5", 1)
    dense = Replay(tmp_path / "dense.h5", of).influence([0], methods="tracin", progress=False)
    wide(tmp_path / "run.h5", 2)
    run = Replay(tmp_path / "run.h5", of)
    with otherwise(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = run.influence([0], methods="tracin", progress=False)
    drift, differs = found.attributes["largest_drift"], found.attributes["steps_not_proved"] > 0
    assert ["steps taken again are not" in str(one.message) for one in said] == [True] * differs
    assert differs == (drift > 0)
    assert drift < 0.01
    exact = dense.scores["tracin"]
    assert np.abs(found.scores["tracin"] - exact).max() <= 100 * drift * np.abs(exact).max()
    if otherwise is lower_precision and differs:
        assert "products have the precision 'bf16' here" in str(said[0].message)
    if otherwise is two_threads:
        with two_threads():
            again = Replay(tmp_path / "run.h5", of, match_environment=True)
            assert not again.verify(progress=False).proof.unproved


@pytest.mark.parametrize(("states", "times"), [(3, 7), (8, 3)])
def test_a_walk_backwards_keeps_few_states_and_halves_what_is_left(
    tmp_path, monkeypatch, states, times
):
    """As binomial checkpointing does: some n/2 log n steps with log n states, more with fewer."""
    trace(tmp_path / "run.h5", "mlp", "adamw", steps=STEPS, snapshot_every=STEPS)
    run, taken, most = Replay(tmp_path / "run.h5", task()), [], []
    take, keep = Execution.take, Points.keep
    monkeypatch.setattr("replay.states.points._LEAST", states)
    monkeypatch.setattr(run._run.states._points, "_budget", 0)
    monkeypatch.setattr(Execution, "take", lambda *a: (taken.append(a[1].index), take(*a))[1])
    monkeypatch.setattr(Points, "keep", lambda *a: (keep(*a), most.append(len(a[0])))[0])
    with open_log(tmp_path / "run.h5") as log:
        for t in reversed(range(STEPS)):
            run._run.states.transition(t)
        assert not run._run.states.unproved
        assert len(log) == STEPS
    assert max(most) <= states
    assert STEPS < len(taken) < times * STEPS, len(taken)
