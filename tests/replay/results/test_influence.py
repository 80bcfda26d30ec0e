"""The result: ranking, saving, loading, opening in xarray, agreement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray
from scipy import stats

from replay import Influence
from replay.results.agreement import METRICS, compare_methods, totals_hold
from tests.helpers.results import made
from tracer.errors import InputError, OutputExistsError


def test_ranking():
    found = made()
    row = found.scores["ideal"][0]
    ids, scores = found.top(7, method="ideal", k=2)
    assert ids == np.argsort(-row)[:2].tolist()
    assert (scores == np.sort(row)[::-1][:2]).all()
    ids, scores = found.bottom(7, method="ideal", k=2)
    assert ids == np.argsort(row)[:2].tolist()
    assert (scores == np.sort(row)[:2]).all()
    with pytest.raises(InputError, match="no test example 99; it has 2"):
        found.top(99)
    with pytest.raises(InputError, match='method must be "tracin" or .*, found .trak.'):
        found.top(7, method="trak")


@pytest.mark.parametrize("ids", [int, "image-{}".format], ids=["int", "str"])
def test_round_trip_and_xarray(tmp_path, ids):
    found, path = made(ids), tmp_path / "study.h5"
    found.save(path)
    again = Influence.load(path)
    assert (again.test_ids, again.train_ids) == (found.test_ids, found.train_ids)
    assert list(again.scores) == list(found.scores)
    for table in ("scores", "drops", "quadrature", "values"):
        for name, values in getattr(found, table).items():
            loaded = getattr(again, table)[name]
            assert loaded.dtype == values.dtype
            assert np.array_equal(loaded, values, equal_nan=values.dtype.kind == "f")
    for method, terms in found.completeness.items():
        assert list(again.completeness[method]) == list(terms)
        for term, values in terms.items():
            assert np.array_equal(again.completeness[method][term], values)
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert data["tracin"].dims == ("test", "train")
        assert data["drop_ideal"].dims == ("step", "test")
        assert data["ideal_residual"].dims == ("step", "test")
        chosen = data["tracin"].sel(test=ids(3), train=ids(4)).item()
        assert chosen == found.scores["tracin"][1, 4]
        assert "positive = proponent" in data["tracin"].attrs["long_name"]
        assert data["tracin"].attrs["units"] == "nats"
        assert data.attrs["sign"] == "positive = proponent"


def test_saving_is_all_or_nothing(tmp_path):
    found, path = made(), tmp_path / "study.h5"
    found.save(path)
    kept = path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"study.h5 exists; .*--overwrite"):
        found.save(path)
    found.scores["broken"] = object()
    with pytest.raises(TypeError):
        found.save(path, overwrite=True)
    assert path.read_bytes() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["study.h5"]


def test_loading_something_else(tmp_path):
    (tmp_path / "x.h5").write_text("no")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        Influence.load(tmp_path / "x.h5")


def test_agreement_equals_its_definitions():
    random = np.random.default_rng(1)
    x = random.normal(size=(3, 40))
    y = 2 * x + random.normal(size=(3, 40))
    x[0, 0] = 0.0
    found = compare_methods({"a": x, "b": y}, k=5)
    assert found.pairs == [("a", "b")]
    for j in range(3):
        a, b = x[j], y[j]
        centred = (a - a.mean(), b - b.mean())
        pearson = (centred[0] @ centred[1]) / np.sqrt(
            (centred[0] @ centred[0]) * (centred[1] @ centred[1])
        )
        pairs = [(i, k) for i in range(40) for k in range(i)]
        kendall = np.mean([np.sign((a[i] - a[k]) * (b[i] - b[k])) for i, k in pairs])
        ranks = stats.rankdata(a), stats.rankdata(b)
        expected = {
            "pearson": pearson,
            "spearman": np.corrcoef(*ranks)[0, 1],
            "kendall": kendall,
            "top_proponents": len(set(np.argsort(a)[-5:]) & set(np.argsort(b)[-5:])) / 5,
            "top_opponents": len(set(np.argsort(a)[:5]) & set(np.argsort(b)[:5])) / 5,
            "sign": np.mean([(p > 0) == (q > 0) for p, q in zip(a, b, strict=True) if p and q]),
            "slope": (a @ b) / (a @ a),
            "total_ratio": b.sum() / a.sum(),
        }
        assert set(expected) == set(METRICS)
        for metric, value in expected.items():
            assert found.get(("a", "b"), metric).values[j] == pytest.approx(value), metric


@pytest.mark.parametrize("kind", ["ties", "zeros", "small", "few"])
def test_agreement_of_rows_with_ties(kind):
    """Correlations are scipy's, overlaps those of the ranking, whatever is equal."""
    random = np.random.default_rng(2)
    n = 3 if kind == "few" else 50
    x, y = random.normal(size=(2, 4, n)).round(1 if kind != "ties" else 0)
    if kind == "zeros":
        x[:, : n // 2], y[:, : n // 3] = 0, -0.0
    if kind == "small":
        x *= 1e-200
    found = compare_methods({"a": x, "b": y}, k=7)
    assert found.k == min(7, n)
    for j, (a, b) in enumerate(zip(x, y, strict=True)):
        for name in ("pearsonr", "spearmanr", "kendalltau"):
            value = found.get(("a", "b"), name.removesuffix("r").removesuffix("tau")).values[j]
            assert value == pytest.approx(getattr(stats, name)(a, b).statistic, abs=1e-12), name
        best = [set(np.argsort(-row, kind="stable")[:7].tolist()) for row in (a, b)]
        overlap = found.get(("a", "b"), "top_proponents").values[j]
        of_all = n <= 7  # the overlap of all with all says nothing
        assert overlap == pytest.approx(
            math.nan if of_all else len(best[0] & best[1]) / 7, nan_ok=True
        )
        slope = found.get(("a", "b"), "slope").values[j]
        assert slope == pytest.approx(
            np.linalg.lstsq(a[:, None] / a.max(), b, rcond=None)[0][0] / a.max()
        )


def test_agreement_where_it_is_undefined():
    found = compare_methods({"a": np.zeros((2, 4)), "b": np.ones((2, 4))}, k=10)
    assert np.isnan(found.get(("a", "b"), "pearson").median)
    assert np.isnan(found.get(("a", "b"), "total_ratio").median)
    gap = compare_methods({"a": np.array([[1.0, np.nan, 2.0]]), "b": np.ones((1, 3))}, k=2)
    assert all(np.isnan(row.values).all() for row in gap.rows)
    one = compare_methods({"a": np.ones((1, 1)), "b": np.ones((1, 1))}, k=3)
    assert one.get(("a", "b"), "slope").median == 1


def test_totals_that_cancel():
    """A ratio of totals is said where neither total is small beside what was summed."""
    x = np.array([[3.0, -1.0, 1.0], [1.0, -1.0, 0.01], [2.0, 1.0, 0.0]])
    y = np.array([[-3.0, -1.0, 1.0], [3.0, 2.0, 1.0], [5.0, -5.0, 0.5]])
    assert totals_hold(x, y).tolist() == [True, False, False]
    assert totals_hold(y, x).tolist() == [True, False, False]
    assert totals_hold(x, np.zeros((3, 3)), share=0.0).all()
