"""A window of a run begins with the optimizer as it was, wherever the log has full states."""

import dataclasses

import numpy as np
import pytest

from replay import Replay
from replay.states.opening import taken_again
from tests.helpers.sparse import STEPS, loss, task, trace

LOGS = {
    "dense": {"snapshot_every": 1},
    "dense-with-states": {"snapshot_every": 1, "state_every": 5},
    "sparse": {"snapshot_every": 5},
    "one-snapshot": {"snapshot_every": STEPS},
}
TERMS = ("data", "regulariser", "history", "buffers", "rounding", "residual", "measured")
METHODS = ["tracin", "ideal"]


@pytest.mark.parametrize("rule", ["heavy-ball", "adamw"])
def test_windows_of_a_run_are_the_same_to_the_bit(tmp_path, rule):
    expected = None
    for name, how in LOGS.items():
        trace(tmp_path / f"{name}.h5", "cnn", rule, clip="inside", parts=2, **how)
        run = Replay(tmp_path / f"{name}.h5", task("cnn"))
        found = run.influence([0, 3], methods=METHODS, steps="7:10", progress=False)
        part = run.influence(
            [0], methods="tracin", steps="7:10", parameters="*.weight", progress=False
        )
        own = run.self_influence(steps="7:10", progress=False).scores
        kept = [found.scores[m] for m in METHODS] + [*own.values(), part.scores["tracin"]]
        kept += [found.completeness[m][term] for m in METHODS for term in TERMS]
        expected = expected or kept
        for one, other in zip(kept, expected, strict=True):  # NaN where an example has no visit
            assert np.array_equal(one, other, equal_nan=True), name


@pytest.mark.filterwarnings("ignore::tracer.errors.PrecisionWarning")
@pytest.mark.parametrize("every", [1, 5])
def test_where_steps_are_not_the_runs_a_window_begins_at_the_state_on_file(tmp_path, every):
    """Its buffers are then replayed from there, which is exact to rounding."""
    path = tmp_path / "run.h5"
    trace(path, "cnn", "heavy-ball", snapshot_every=every, size=7)
    exact = Replay(path, task("cnn")).influence(
        [0, 3], methods="tracin", steps="7:9", progress=False
    )
    nearly = dataclasses.replace(task("cnn"), loss=lambda m, b: loss(m, b) * (1 + 2e-7))
    run = Replay(path, nearly)
    states = run._run.states
    assert states.optimizer_again(7) is None
    assert states.optimizer_again(5 if every == 5 else 0) is not None
    found = run.influence(
        [0, 3], methods="tracin", steps="7:9", allow_mismatch=True, progress=False
    )
    size = np.abs(exact.scores["tracin"]).max()
    assert 0 < np.abs(found.scores["tracin"] - exact.scores["tracin"]).max() < 1e-4 * size


def test_the_optimizer_taken_again_is_the_one_on_file(tmp_path):
    trace(tmp_path / "run.h5", "mlp", "adamw", snapshot_every=1, state_every=5)
    trace(tmp_path / "again.h5", "mlp", "adamw", snapshot_every=STEPS)
    logged = Replay(tmp_path / "run.h5", task())._run.states
    again = Replay(tmp_path / "again.h5", task())._run
    states = taken_again(again.log, again.task, again.models.device, again.budget)
    for t in (5, 10):
        found, expected = states.optimizer_again(t), logged.optimizer(t)
        for name, state in expected.states.items():
            for key, value in state.items():
                assert (found.states[name][key] == value).all(), (name, key)
