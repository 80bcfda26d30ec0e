"""Scores by period: whose visits earned what when, whatever the optimizer remembers."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from replay import Influence, Replay
from replay.methods.table import METHODS
from tests.helpers.cases import Case, mlp
from tests.helpers.replaying import trained
from tests.helpers.results import made
from tracer import open_log
from tracer.errors import InputError

HEAVY = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
CASE = Case("mlp", mlp, batches=((0, 1, 2, 3), (4, 4, 6), (8, 9, 1)) * 3, options=HEAVY)
TESTS = [0, 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the replay of nine steps in three epochs."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    return Replay(path, task=CASE.trace(path))


def asked(run, **options):
    return run.influence(TESTS, methods=list(METHODS), progress=False, **options)


@pytest.fixture(scope="module")
def by_step(run):
    return asked(run, by="step")


def test_only_the_examples_of_a_step_earn_in_it(run, by_step):
    for method, parts in by_step.by_period.items():
        if METHODS[method].walks:
            with open_log(run.log.path) as log:
                visited = [sorted(set(log.batch_ids(t))) for t in range(len(log))]
            earned = [np.flatnonzero(parts[0, :, t]).tolist() for t in range(9)]
            assert earned == visited, method


@pytest.mark.parametrize(
    ("by", "periods"),
    [("epoch", [0, 1, 2]), (4, [0, 4, 8]), (np.int64(3), [0, 3, 6]), (100, [0])],
)
def test_periods_are_sums_of_steps_and_add_up_bit_for_bit(run, by_step, by, periods):
    found, plain = asked(run, by=by), asked(run)
    assert found.periods == periods
    assert found.attributes["by"] == str(by)
    labels = np.array(found.period_of_step)
    for method, parts in found.by_period.items():
        assert np.array_equal(parts.sum(-1), found.scores[method])
        largest = np.abs(plain.scores[method]).max()
        assert np.abs(found.scores[method] - plain.scores[method]).max() <= 1e-13 * largest
        for k, period in enumerate(periods if METHODS[method].walks else ()):
            steps = by_step.by_period[method][:, :, labels == period].sum(-1)
            assert np.abs(parts[:, :, k] - steps).max() <= 1e-13 * largest
    assert plain.periods == []
    assert plain.by_period == {}
    for method, terms in plain.terms.items():  # nothing else depends on it
        for term, values in terms.items():
            assert np.array_equal(found.terms[method][term], values)


@pytest.mark.parametrize(("checkpoints", "places"), [("epochs", [0, 1, 2]), ([0, 4, 9], [0, 1, 2])])
def test_a_checkpoint_belongs_to_the_period_that_led_to_it(run, checkpoints, places):
    found = run.influence(
        TESTS, methods="tracincp", checkpoints=checkpoints, by="epoch", progress=False
    )
    states = [3, 6, 9] if checkpoints == "epochs" else checkpoints
    for state, place in zip(states, places, strict=True):
        one = run.influence(TESTS, methods="tracincp", checkpoints=[state], progress=False)
        assert np.array_equal(found.by_period["tracincp"][:, :, place], one.scores["tracincp"])


def test_a_window_has_periods_of_its_own(run):
    methods = ("tracin", "ideal")
    found = run.influence(TESTS, methods=methods, steps="2:7", by="epoch", progress=False)
    assert found.periods == [0, 1, 2]
    assert found.period_of_step.tolist() == [0, 1, 1, 1, 2]
    plain = run.influence(TESTS, methods=methods, steps="2:7", progress=False)
    for method, scores in plain.scores.items():
        assert np.allclose(found.scores[method], scores, rtol=1e-12, atol=1e-15)
    with open_log(run.log.path) as log:
        unseen = set(range(10)) - set(log.batch_ids(6))
    assert not found.by_period["tracin"][:, sorted(unseen), 2].any()


def test_curves(by_step, run):
    steps, earned = by_step.curve(2, train_id=4, method="ideal")
    assert steps.tolist() == list(range(9))
    assert np.flatnonzero(earned).tolist() == [1, 4, 7]
    assert np.isclose(earned.sum(), by_step.scores["ideal"][1, 4], rtol=1e-12)
    steps, earned = asked(run, by="epoch").curve(2, train_id=4)
    assert steps.tolist() == [2, 5, 8]
    assert np.allclose(earned, by_step.curve(2, train_id=4)[1].reshape(3, 3).sum(1), rtol=1e-12)


def test_files_keep_periods(tmp_path):
    found = made(periods=(0, 0, 5, 5))
    found.save(tmp_path / "study.h5")
    again = Influence.load(tmp_path / "study.h5")
    assert again.periods == [0, 5]
    for method, parts in again.by_period.items():
        assert np.array_equal(parts, found.by_period[method])
        assert np.array_equal(parts.sum(-1), again.scores[method])
    assert again.curve(3, train_id=1)[0].tolist() == [1, 3]
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(tmp_path / "study.h5", engine="h5netcdf") as data:
        assert data["ideal_by_period"].dims == ("period", "test", "train")
        assert (data["ideal_by_period"].sum("period") == data["ideal"]).all()
        one = data["ideal_by_period"].sel(period=5, test=3, train=1)
        assert one == found.by_period["ideal"][1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "week"}, 'by must be "epoch", "step" or a number of steps, found \'week\'.'),
        ({"by": 0}, "by must be a whole number from 1 on, found 0."),
        ({"by": 1.5}, "by must be a whole number from 1 on, found 1.5."),
        ({"by": True}, "by must be a whole number from 1 on, found True."),
        (
            {"by": 3, "steps": "2:5", "checkpoints": [4, 9]},
            "by= divides the steps 2:5, and checkpoint 9 is outside of them.\n"
            "1. Give checkpoints of that window (checkpoints=[...]).\n"
            "2. Or leave steps= out: periods of the whole run hold every checkpoint.",
        ),
    ],
)
def test_what_cannot_be_divided(run, options, message):
    with pytest.raises(InputError) as caught:
        run.influence(TESTS, progress=False, **options)
    assert str(caught.value) == message


def test_a_run_without_epochs(tmp_path):
    task = dataclasses.replace(CASE, batches=((0, 1),)).task()
    trained(tmp_path / "run.h5", task)
    run = Replay(tmp_path / "run.h5", task=task)
    message = (
        'by="epoch" asks for epochs, but .*run.h5 has steps without one; set optimizer.epoch = '
        "epoch in the training loop, or give another by=."
    )
    with pytest.raises(InputError, match=message):
        run.influence(TESTS, by="epoch", progress=False)


def test_curves_that_are_not_there(by_step, run):
    message = 'this result has their sums alone; ask again: run.influence(..., by="step")'
    with pytest.raises(InputError, match=re.escape(message)):
        made().curve(7, train_id=1)
    with pytest.raises(InputError, match="the result has no training example 99; it has 10, beg"):
        by_step.curve(0, train_id=99)
    with pytest.raises(InputError, match="the result has no test example 99; it has 2, beginn"):
        by_step.curve(99, train_id=0)


def test_tables_are_forecast(run):
    m, n, methods = 2, 10, len(METHODS)
    one, divided = (run.estimate(TESTS, methods=list(METHODS), by=by) for by in (None, "epoch"))
    assert divided.table_bytes - one.table_bytes == 8 * m * n * methods * 3
