"""The result: ranking, saving, loading, opening in xarray, agreement."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import xarray
from rich.console import Console
from scipy import stats

from replay import Influence, Replay
from replay.command.show.influence import completeness_table, report, to_json
from replay.results.agreement import METRICS, compare
from replay.session.step_result import TERMS
from tests.helpers.cases import Case, mlp
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
    with pytest.raises(InputError, match="no method 'trak'; it has"):
        found.top(7, method="trak")


@pytest.mark.parametrize("ids", [int, "image-{}".format], ids=["int", "str"])
def test_round_trip_and_xarray(tmp_path, ids):
    found, path = made(ids), tmp_path / "study.h5"
    found.save(path)
    again = Influence.load(path)
    assert (again.test_ids, again.train_ids) == (found.test_ids, found.train_ids)
    assert list(again.scores) == list(found.scores)
    for table in ("scores", "drops", "quadrature"):
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
    with pytest.raises(InputError, match="cannot be read as a result"):
        Influence.load(tmp_path / "x.h5")


def test_agreement_equals_its_definitions():
    random = np.random.default_rng(1)
    x = random.normal(size=(3, 40))
    y = 2 * x + random.normal(size=(3, 40))
    x[0, 0] = 0.0
    found = compare({"a": x, "b": y}, k=5)
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


def test_agreement_where_it_is_undefined():
    found = compare({"a": np.zeros((2, 4)), "b": np.ones((2, 4))}, k=10)
    assert np.isnan(found.get(("a", "b"), "pearson").median)
    assert np.isnan(found.get(("a", "b"), "total_ratio").median)
    one = compare({"a": np.ones((1, 1)), "b": np.ones((1, 1))}, k=3)
    assert one.get(("a", "b"), "slope").median == 1


@pytest.mark.parametrize("width", [80, 120])
def test_report(width):
    found = made("image-{}".format)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report(found, describe_test=lambda _: "a [cat]", describe_train=lambda _: None))
    text = console.export_text()
    for part in ("positive = proponent", "Pearson", "total ratio", "residual", "opponents"):
        assert part in text
    assert "a [cat]" in text
    assert "[quartiles]" in text
    assert max(map(len, text.splitlines())) <= width


def test_completeness_shows_what_else_moved_the_model(tmp_path):
    """Momentum from before the window, weight decay: rows that add up to the measured drop."""
    case = Case("decayed", mlp, options={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05})
    run = Replay(tmp_path / "run.h5", task=case.trace(tmp_path / "run.h5"))
    found = run.influence([0, 1], methods=("tracin", "ideal"), steps="3:6", progress=False)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(completeness_table(found))
    rows = [line.strip("│ ").split("│") for line in console.export_text().splitlines()]
    shown = {row[0].strip(): [float(x) for x in row[1:]] for row in rows if len(row) == 3}
    terms = [term for term in TERMS if term != "elsewhere"]
    signs = ["", *["+ "] * (len(terms) - 2), "= "]
    labels = [sign + term for sign, term in zip(signs, terms, strict=True)]
    assert list(shown) == [*labels, "largest |residual| of a step"]
    for label, term in zip(labels, terms, strict=True):
        means = [found.completeness[method][term].mean() for method in found.terms]
        assert shown[label] == pytest.approx(means, rel=1e-3), term
    for k in (0, 1):
        assert all(shown[f"+ {term}"][k] for term in ("history", "regulariser"))
        added = sum(shown[label][k] for label in labels[:-1])
        assert added == pytest.approx(shown["= measured"][k], rel=1e-2)


def test_json_is_plain():
    found = json.loads(json.dumps(to_json(made()), allow_nan=False))
    assert found["test_ids"] == [7, 3]
    assert len(found["agreement"]) == 3 * len(METRICS)
    assert len(found["completeness"]["ideal"]["residual"]) == 2
    assert found["top"]["tracin"][0]["test"] == 7
