"""Sweeps over checkpoints: what one pass gives is what a question for each choice gives."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from scipy import stats

from replay import CheckpointSweep, Replay
from replay.results.variables import CHECKPOINT_SWEEP
from replay.states.placements import PLACEMENTS
from tests.helpers.cases import Case, mlp
from tests.helpers.replaying import TASK, trained
from tracer import open_log
from tracer.errors import InputError

EPOCHS = ((0, 1, 2, 3), (4, 4, 6), (8, 9, 1)) * 4
TESTS, COUNTS = [0, 2], (1, 3, 40)


@pytest.fixture(scope="module", params=[{"lr": 0.3}, {"lr": 0.1, "momentum": 0.9}], ids=str)
def run(request, tmp_path_factory):
    """Return the replay of twelve steps in four epochs, the learning rate falling."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    return Replay(path, task=Case("mlp", mlp, batches=EPOCHS, options=request.param).trace(path))


@pytest.fixture(scope="module")
def found(run):
    return run.checkpoint_sweep(TESTS, counts=COUNTS, progress=False)


def test_every_row_is_that_of_a_question_of_its_own(run, found):
    assert len(found.choices) == len(COUNTS) * len(PLACEMENTS)
    for row, choice in enumerate(found.choices):
        alone = run.influence(TESTS, checkpoints=list(choice.steps), progress=False)
        for method in ("tracin", "ideal"):
            ours = {name: table[row] for name, table in found.errors[method].items()}
            exact, sums = alone.scores[method], alone.scores["tracincp"]
            rows = {m: alone.agreement(progress=False).get((method, "tracincp"), m).values
                    for m in ("pearson", "spearman", "total_ratio")}  # fmt: skip
            for measure, values in rows.items():
                assert np.array_equal(ours[measure], values), (choice, measure)
            distance = np.linalg.norm(sums - exact, axis=1) / np.linalg.norm(exact, axis=1)
            assert np.allclose(ours["relative_error"], distance, rtol=1e-12)
            for j in range(2):
                _, (left,), *_ = np.linalg.lstsq(sums[j][:, None], exact[j], rcond=None)
                expected = np.sqrt(left) / np.linalg.norm(exact[j])
                assert np.isclose(ours["scaled_error"][j], expected, rtol=1e-8)
                assert np.isclose(ours["pearson"][j], stats.pearsonr(exact[j], sums[j])[0])


def test_placements(run, found):
    steps = {str(choice): choice.steps for choice in found.choices}
    assert steps["even 3"] == (4, 8, 12)
    assert steps["even 40"] == tuple(range(13))
    assert steps["epochs 1"] == (12,)
    assert steps["epochs 3"] == (3, 9, 12) or steps["epochs 3"] == (3, 8, 12)
    assert steps["epochs 40"] == (3, 6, 9, 12)
    assert steps["early 3"] == (1, 2, 3)
    assert steps["late 3"] == (10, 11, 12)
    with open_log(run.log.path) as log:
        rates = np.cumsum([0, *(log.learning_rate(t)[0] for t in range(12))])
    assert steps["rate 1"] == (12,)
    for share, state in zip((1 / 3, 2 / 3, 1), steps["rate 3"], strict=True):
        gaps = np.abs(rates - share * rates[-1])
        assert gaps[state] == gaps.min()
    assert steps["rate 3"][0] < 4  # the rate falls, so its sum fills early


def test_files_and_medians(tmp_path, found):
    found.save(tmp_path / "sweep.h5")
    again = CheckpointSweep.load(tmp_path / "sweep.h5")
    assert (again.choices, again.test_ids) == (found.choices, found.test_ids)
    assert again.attributes == found.attributes
    for method, tables in found.errors.items():
        for measure, values in tables.items():
            assert np.array_equal(again.errors[method][measure], values, equal_nan=True)
    medians = again.median("scaled_error", against="ideal")
    assert np.allclose(medians, np.median(found.errors["ideal"]["scaled_error"], axis=1))
    with h5py.File(tmp_path / "sweep.h5") as file:
        assert set(CHECKPOINT_SWEEP.dimensions) < set(file)
        assert [axis[0].name for axis in file["pearson_against_ideal"].dims] == ["/row", "/test"]
    assert "15 choices of checkpoints, 2 test examples\n" in repr(found)
    with pytest.raises(InputError, match='against must be "tracin" or "ideal", found .trak.'):
        found.median("pearson", against="trak")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": []}, r"counts are different ones, at least one; found \[\]"),
        ({"counts": [2, 2]}, r"counts are different ones, at least one; found \[2, 2\]"),
        ({"counts": [0]}, "counts must be a whole number from 1 on, found 0"),
        ({"placements": "middle"}, 'placements must be "even" or .*, found .middle.'),
        ({"train_ids": [99]}, "the training set has no example 99"),
    ],
)
def test_what_cannot_be_swept(run, options, message):
    with pytest.raises(InputError, match=message):
        run.checkpoint_sweep(TESTS, progress=False, **options)


def test_a_run_without_epochs(tmp_path):
    trained(tmp_path / "run.h5", TASK)
    run = Replay(tmp_path / "run.h5", task=TASK)
    found = run.checkpoint_sweep([0], counts=[1], progress=False)
    assert [one.placement for one in found.choices] == ["even", "early", "late", "rate"]
    with pytest.raises(InputError, match='placements="epochs" asks for epochs, but .* has steps w'):
        run.checkpoint_sweep([0], placements=["epochs"], progress=False)
