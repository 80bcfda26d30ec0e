"""Runs of several snapshots in a process that knows nothing of the training; walks backwards."""

from __future__ import annotations

import pytest

from replay import Replay
from replay.states.execution import Execution
from replay.states.points import Points
from tests.helpers.sparse import task, trace
from tests.helpers.training import script
from tracer import open_log

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
