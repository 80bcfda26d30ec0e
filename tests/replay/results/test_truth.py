"""Agreement of methods with counterfactual runs, against scipy and by hand."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from replay import Counterfactual, Influence, Replay
from replay.results.bootstrap import mean_interval
from tests.helpers.alternatives import EXAMPLES, TESTS, Loop
from tests.helpers.results import made
from tracer.errors import InputError

RANDOM = np.random.default_rng(4)
TRAIN, TEST = [f"a{k}" for k in range(9)], ["t0", "t1", "t2"]
SCORES = {name: RANDOM.normal(size=(3, 9)) for name in ("tracin", "tracincp")}
FACTS = {"run_uuid": "u", "protocol": "subsets", "denominators": "of the run", "seed": 3}


def influence():
    return Influence(TEST, TRAIN, SCORES, {}, {}, {}, {"run_uuid": "u"})


def truth(changes, test_ids=TEST, **facts):
    values = RANDOM.normal(size=(len(changes), 1, len(test_ids)))
    baseline = RANDOM.normal(size=(1, len(test_ids)))
    return Counterfactual(test_ids, changes, [5], values, baseline, {**FACTS, **facts})


def test_over_subsets_it_is_the_linear_datamodeling_score():
    sets = [RANDOM.permutation(9)[:4] for _ in range(12)]
    changes = [{TRAIN[k]: 0.0 for k in some} for some in sets]
    changes[3] = {"a2": 0.25}
    runs = truth(changes)
    found = influence().agreement(truth=runs, progress=False)
    assert found.protocol == "subsets of 12 runs, seed 3, denominators of the run"
    assert found.pairs == [("subsets", "tracin"), ("subsets", "tracincp")]
    for method, scores in SCORES.items():
        sums = np.stack([scores[:, some].sum(1) for some in sets], 1)
        sums[:, 3] = 0.75 * scores[:, 2]
        for metric, expected in (
            ("lds", lambda x, y: stats.spearmanr(x, y).statistic),
            ("pearson", lambda x, y: stats.pearsonr(x, y).statistic),
            ("slope", lambda x, y: x @ y / (x @ x)),
            ("total_ratio", lambda x, y: y.sum() / x.sum()),
            ("sign", lambda x, y: np.mean((x > 0) == (y > 0))),
        ):
            row = found.get(("subsets", method), metric)
            wanted = [expected(x, y) for x, y in zip(runs.change.T, sums, strict=True)]
            assert row.values == pytest.approx(wanted, abs=1e-12), metric
    with pytest.raises(InputError, match='metric must be "pearson" or "lds"'):
        found.get(("subsets", "tracin"), "spearman")


def test_one_by_one_scores_are_compared_with_the_truth():
    order = [4, 0, 7, 3]
    runs = truth([{TRAIN[k]: 0.0} for k in order], ["t2", "other", "t0"], protocol="leave-one-out")
    found = influence().agreement(truth=runs, k=2, progress=False)
    row = found.get(("leave-one-out", "tracin"), "spearman")
    wanted = [
        stats.spearmanr(runs.change[:, column], SCORES["tracin"][j, order]).statistic
        for j, column in ((0, 2), (2, 0))
    ]
    assert row.values == pytest.approx(wanted)
    tops = [
        set(np.argsort(-runs.change[:, column])[:2])
        & set(np.argsort(-SCORES["tracin"][j, order])[:2])
        for j, column in ((0, 2), (2, 0))
    ]
    assert found.get(("leave-one-out", "tracin"), "top_proponents").values.tolist() == [
        len(one) / 2 for one in tops
    ]


def test_runs_that_diverged_are_left_out_and_said():
    runs = truth([{one: 0.0} for one in TRAIN], protocol="leave-one-out")
    few = dataclasses.replace(runs, changes=runs.changes[:-1], values_along=runs.values_along[:-1])
    runs.values_along[-1] = np.nan
    found, expected = (influence().agreement(truth=one, progress=False) for one in (runs, few))
    assert found.protocol.endswith(
        "9 runs, seed 3, denominators of the run, 1 that diverged left out"
    )
    for left, right in zip(found.rows, expected.rows, strict=True):
        assert np.array_equal(left.values, right.values, equal_nan=True)


def test_intervals_are_those_of_scipy():
    values = RANDOM.normal(size=30)
    low, high = mean_interval(values, 0.95)
    student = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(student, abs=0.1)
    assert (low, high) == mean_interval(values, 0.95)
    narrow = mean_interval(values, 0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high
    assert mean_interval(np.full(4, 0.5), 0.95) == (0.5, 0.5)
    assert np.isnan(mean_interval(values[:1], 0.95)).all()
    assert np.isnan(mean_interval(values[:0], 0.95)).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (truth([{"a1": 0.0}], run_uuid="v"), "of the run u, and the truth is of the run v"),
        (truth([{"a1": 0.0}], ["x"]), "the truth is of .'x'."),
        (truth([{"b1": 0.0}]), "without the training example 'b1', and the scores have no such"),
        (3, "truth must be what Replay.leave_one_out.*found 3"),
        (made(), "found an object of type Influence"),
    ],
    ids=["run", "test examples", "training examples", "number", "influence"],
)
def test_a_truth_that_does_not_fit(given, said):
    with pytest.raises(InputError, match=said):
        influence().agreement(truth=given)


def test_of_one_linear_step_every_method_is_the_truth(tmp_path):
    loop = Loop("lstm", steps=1, size=EXAMPLES)
    loop.train(tmp_path / "run.h5")
    task = loop.task()
    run = Replay(tmp_path / "run.h5", dataclasses.replace(task, measure=_linear))
    found = run.influence(range(TESTS), methods=["tracin", "ideal"], progress=False)
    for runs in (
        run.leave_one_out(range(TESTS), progress=False),
        run.subsets(range(TESTS), count=8, progress=False),
    ):
        agreement = found.agreement(truth=runs, progress=False)
        for row in agreement.rows:
            assert row.mean == pytest.approx(1, abs=1e-6), row
            assert row.interval() == pytest.approx((1, 1), abs=1e-6)


def _linear(model, batch):
    """Return what is linear in the parameters, another thing for each example."""
    whole = sum((k + 1) * p.sum() for k, p in enumerate(model.parameters()))
    return whole * (1 + batch[0][:, 0])


def test_groups_are_not_compared_with_the_truth_of_examples():
    groups = influence().by(train=[0] * 9)
    with pytest.raises(
        InputError, match="this result is of groups of them .influence.by.; compare"
    ):
        groups.agreement(truth=truth([{"a1": 0.0}]), progress=False)
