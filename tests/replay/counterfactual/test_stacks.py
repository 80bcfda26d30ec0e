"""Runs of a small model that are taken together, against the same runs taken one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replay import Replay
from replay.counterfactual import stacks
from replay.counterfactual.lanes import Lanes
from replay.counterfactual.runs import Runs
from tests.helpers.alternatives import EXAMPLES, TESTS, Loop
from tests.helpers.sparse import task, trace
from tracer.errors import NonFiniteError
from tracer.rules import table

HOW = {"along": 3, "progress": False}
LOOPS = {
    "mlp": Loop(),
    "accumulation": Loop(rule="heavy-ball", parts=2),
    "sum": Loop(rule="adamw", reduction="sum"),
    "batchnorm": Loop("cnn", "adam-fused"),
    "lstm": Loop("lstm", "sgd-foreach"),
}


@pytest.fixture
def alone(monkeypatch):
    """Return a function that takes runs one by one, and the runs that were taken so."""
    counted, values = [], Runs.values

    def one(runs, change):
        counted.append(change)
        return values(runs, change)

    def taken(run, **how):
        with monkeypatch.context() as patch:
            patch.setattr(stacks, "FEWEST", 10**9)
            found = run.leave_one_out(range(TESTS), **HOW, **how)
        counted.clear()
        return found

    monkeypatch.setattr(Runs, "values", one)
    return taken, counted


@pytest.mark.parametrize("name", LOOPS)
def test_lanes_are_runs(tmp_path, monkeypatch, alone, name):
    """To rounding, whether or not their bits are the run's."""
    LOOPS[name].train(tmp_path / "run.h5")
    run, (one_by_one, counted) = Replay(tmp_path / "run.h5", LOOPS[name].task()), alone
    expected = one_by_one(run)
    monkeypatch.setattr(stacks, "FEWEST", 2)
    monkeypatch.setattr(stacks, "MOST", 7)
    monkeypatch.setattr(Runs, "is_run", lambda *_: True)
    monkeypatch.setattr(Lanes, "alike", lambda *_: True)
    found = run.leave_one_out(range(TESTS), **HOW)
    visited = {i for t in range(6) for i in run.log.batch_ids(t)}
    assert len(counted) == EXAMPLES - len(visited)
    assert abs(found.values_along - expected.values_along).max() < 1e-11
    assert abs(expected.change).max() > 1e-5


@pytest.mark.parametrize(
    ("model", "optimizer"), [("mlp", "heavy-ball"), ("mlp", "adamw"), ("attention", "sgd")]
)
def test_a_stack_comes_out_as_runs_alone_bit_for_bit(tmp_path, alone, model, optimizer):
    """Also of attention, whose dropout draws other numbers for several lanes."""
    trace(tmp_path / "run.h5", model, optimizer, size=8)
    run, (one_by_one, _) = Replay(tmp_path / "run.h5", task(model)), alone
    expected, found = one_by_one(run), run.leave_one_out(range(TESTS), **HOW)
    assert np.array_equal(found.values_along, expected.values_along)


@pytest.mark.parametrize("wrong", ["all", "one", "late", "error"])
def test_what_does_not_come_out_is_taken_alone(tmp_path, monkeypatch, alone, wrong):
    Loop().train(tmp_path / "run.h5")
    run, (one_by_one, counted) = Replay(tmp_path / "run.h5", Loop().task()), alone
    expected, weights = one_by_one(run), Lanes._weights
    monkeypatch.setattr(stacks, "FEWEST", 2)

    def broken(lanes, step, dtype):
        found = weights(lanes, step, dtype)
        if wrong == "error":
            raise RuntimeError("vmap: no batching rule")
        if wrong == "all" or (wrong == "late" and step.index > 3):
            return [c * (1 + 1e-9) for c in found]
        found[0][-2] *= 1 + 1e-9 if wrong == "one" else 1
        return found

    monkeypatch.setattr(Lanes, "_weights", broken)
    if wrong == "one":  # another lane than the last one, in the trial as well
        monkeypatch.setattr(Runs, "is_run", lambda *_: True)
    found = run.leave_one_out(range(TESTS), **HOW)
    assert len(counted) == EXAMPLES
    assert np.array_equal(found.values_along, expected.values_along)


def test_a_stack_ends_at_the_first_step_that_is_not_the_run(tmp_path, monkeypatch, alone):
    Loop().train(tmp_path / "run.h5")
    run, looked = Replay(tmp_path / "run.h5", Loop().task()), []
    monkeypatch.setattr(stacks, "FEWEST", 2)
    monkeypatch.setattr(Lanes, "alike", lambda *_: True)
    monkeypatch.setattr(Runs, "is_run", lambda _, __, t: looked.append(t) or t < 5)
    run.leave_one_out([0], progress=False)
    assert max(looked) == 5 < len(run.log)
    assert len(alone[1]) == EXAMPLES


def test_a_lane_ends_at_the_first_value_that_is_none():
    """As a run alone does, though its later values may be numbers again."""

    def measure(state, _):
        if state == "none":
            raise NonFiniteError("a loss is NaN")
        return np.ones(2)

    states = iter(["some", "none", "some"])
    lanes = SimpleNamespace(alive=torch.ones(1, dtype=torch.bool), state=lambda _: next(states))
    runs = SimpleNamespace(measure=measure, baseline=np.zeros((3, 2)))
    found = np.stack([stacks._values(runs, lanes, 0) for _ in range(3)])
    assert np.isfinite(found).tolist() == [[True] * 2, [False] * 2, [False] * 2]


def test_an_estimate_counts_stacks(tmp_path, monkeypatch):
    trace(tmp_path / "run.h5")
    run, ids = Replay(tmp_path / "run.h5", task()), [[i] for i in range(40)]
    monkeypatch.setattr(Runs, "timed", lambda *_: (1000.0, 0.0))
    alone = run.estimate_counterfactual([0], remove=ids[:9]).seconds
    together = run.estimate_counterfactual([0], remove=ids).seconds
    assert alone > 24_000  # the run itself twice, then nine others
    assert 24_000 < together < 24_100
    monkeypatch.setattr(Lanes, "begin", None)  # nothing can be taken together
    assert run.estimate_counterfactual([0], remove=ids).seconds > 30_000


def test_a_lane_that_diverges_is_alone_in_it(tmp_path, monkeypatch):
    Loop().train(tmp_path / "run.h5")
    run, scales = Replay(tmp_path / "run.h5", Loop().task()), [{3: 0.0}, {3: 1e308}, {4: 0.5}]
    with pytest.warns(match="1 counterfactual runs diverged"):
        expected = run.counterfactual([0], scale=scales, **HOW).values_along
    monkeypatch.setattr(stacks, "FEWEST", 2)
    monkeypatch.setattr(Runs, "is_run", lambda *_: True)
    monkeypatch.setattr(Lanes, "alike", lambda *_: True)
    with pytest.warns(match="1 counterfactual runs diverged"):
        found = run.counterfactual([0], scale=scales, **HOW).values_along
    assert np.isnan(expected).any()
    assert np.allclose(found, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_stacks_are_those_of_the_question(tmp_path):
    trace(tmp_path / "run.h5")
    log = Replay(tmp_path / "run.h5", task()).log
    starts = [*range(11), *[12] * 3] * 10
    found = stacks.stacked(log, starts)
    assert sorted(n for some in found for n in some) == list(range(140))
    assert [len(some) for some in found] == [55, 55, *[1] * 30]
    assert [starts[n] for some in found[:2] for n in some] == sorted(s for s in starts if s < 12)
    assert {len(some) for some in stacks.stacked(log, starts[:31])} == {1}


def test_other_runs_are_taken_alone(tmp_path, monkeypatch):
    for name, how in (("run", {}), ("clipped", {"clip": "inside"})):
        trace(tmp_path / f"{name}.h5", **how)
    log, starts = Replay(tmp_path / "run.h5", task()).log, [0] * 99
    assert {len(some) for some in stacks.stacked(log, starts)} == {49, 50}
    monkeypatch.setattr(stacks, "SMALL", 100)
    assert {len(some) for some in stacks.stacked(log, starts)} == {1}
    monkeypatch.undo()
    monkeypatch.delitem(table.KNOWN, "SGD")
    assert {len(some) for some in stacks.stacked(log, starts)} == {1}
    monkeypatch.undo()
    monkeypatch.setattr(Lanes, "begin", None)
    run = Replay(tmp_path / "clipped.h5", task())
    assert np.isfinite(run.leave_one_out([0], progress=False).change).all()
