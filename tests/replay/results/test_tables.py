"""A result in other forms: groups, tables of other libraries, files of other programs."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
import xarray

from replay import Influence, compare
from tests.helpers.results import made, of_themselves
from tracer.errors import InputError, OutputExistsError

CLASSES = ["cat", "dog", "cat", "eel", "dog", "cat"]
ENDINGS = (".csv", ".parquet", ".npz", ".json")


def naive(table, labels):
    """Return sums by label, from loops."""
    found = dict.fromkeys(sorted(set(labels)), 0.0)
    for label, column in zip(labels, table.T, strict=True):
        found[label] = found[label] + column
    return np.stack(list(found.values()), 1)


@pytest.mark.parametrize("periods", [(), (0, 0, 5, 5)], ids=["whole", "by period"])
def test_groups_of_training_examples(tmp_path, periods):
    found = made(periods=periods)
    classes = found.by(train=CLASSES)
    assert classes.train_ids == ["cat", "dog", "eel"]
    assert classes.attributes["grouped"] == "train"
    for method, scores in found.scores.items():
        assert np.allclose(classes.scores[method], naive(scores, CLASSES), rtol=1e-14)
        for k in range(len(found.periods)):
            part = found.by_period[method][:, :, k]
            assert np.allclose(classes.by_period[method][:, :, k], naive(part, CLASSES), rtol=1e-14)
        if periods:
            assert np.array_equal(classes.by_period[method].sum(-1), classes.scores[method])
    for given in (dict(enumerate(CLASSES)), np.array(CLASSES)):
        assert np.array_equal(found.by(train=given).scores["ideal"], classes.scores["ideal"])
    best = max(range(3), key=lambda k: classes.scores["ideal"][0, k])
    assert classes.top(7, method="ideal", k=1)[0] == [classes.train_ids[best]]
    classes.save(tmp_path / "classes.h5")
    assert Influence.load(tmp_path / "classes.h5").train_ids == classes.train_ids


def test_groups_of_test_examples_keep_the_identity():
    found = made()
    both = found.by(train=torch.tensor([1, 0, 1, 2, 0, 1]), test={7: "x", 3: "x"})
    assert (both.test_ids, both.train_ids) == (["x"], [0, 1, 2])
    assert both.attributes["grouped"] == "train test"
    columns = naive(found.scores["tracin"], [1, 0, 1, 2, 0, 1])
    assert np.allclose(both.scores["tracin"], columns.sum(0, keepdims=True), rtol=1e-14)
    for method, terms in found.completeness.items():
        for term, values in terms.items():
            assert np.allclose(both.completeness[method][term], [values.sum()], rtol=1e-13)
    assert np.allclose(both.drops["ideal"][:, 0], found.drops["ideal"].sum(1))
    assert both.quadrature == {}
    assert np.allclose(both.values["before"], [found.values["before"].sum()])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "found neither; write influence.by(train=labels)."),
        ({"train": CLASSES[:5]}, "train= takes a label for each of the result's 6 examples, in th"),
        ({"train": 3}, "or a mapping from IDs to labels; found 3."),
        ({"test": {7: 0}}, "the labels test= have none for the example 3; give one for each of"),
        (
            {"train": [0, 1, "x", 1, 1, 1]},
            "train= must be all whole numbers or all text without NUL; ",
        ),
        (
            {"train": [0.5] * 6},
            "train= must be all whole numbers or all text without NUL; found 0.5 of",
        ),
        (
            {"test": [True, False]},
            "test= must be all whole numbers or all text without NUL; found True of",
        ),
    ],
)
def test_labels_that_make_no_groups(labels, message):
    with pytest.raises(InputError) as caught:
        made().by(**labels)
    assert message in str(caught.value)


def test_two_results_are_compared_on_what_they_share():
    a = made()
    rows, columns = [1], [5, 0, 3, 2]
    b = replace(
        a,
        test_ids=[3, 8],
        train_ids=[5, 0, 3, 2, 99],
        scores={
            m: np.concatenate([a.scores[m][rows][:, columns], [[7.0]]], 1).repeat(2, 0) ** 3
            for m in ("ideal", "tracincp")
        },
    )
    found = compare(a, b, names=("all", "last"), k=3)
    assert found.pairs == [("all ideal", "last ideal"), ("all tracincp", "last tracincp")]
    assert found.k == 3
    shared = a.scores["ideal"][1, [0, 2, 3, 5]]
    pearson = np.corrcoef(shared, shared**3)[0, 1]
    assert np.isclose(found.get(found.pairs[0], "pearson").values, pearson).all()
    assert found.get(found.pairs[0], "spearman").values.tolist() == [1.0]
    assert np.isclose(
        found.get(found.pairs[0], "slope").median, (shared**4).sum() / (shared**2).sum()
    )
    itself = compare(a, a)
    assert itself.pairs[0] == ("a tracin", "b tracin")
    assert np.allclose(itself.get(itself.pairs[0], "kendall").values, 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda a: replace(a, test_ids=[70, 30]),
            "have no test example in common: 7, 3 ... and 70",
        ),
        (lambda a: replace(a, train_ids=list("abcdef")), "no training example in common: 0, 1, 2 "),
        (lambda a: replace(a, scores={"x": a.scores["ideal"]}), "no method in common: 'tracin', "),
        (lambda a: a.scores, "compare takes two results of influence, found dict of length 3."),
    ],
)
def test_results_that_share_nothing(other, message):
    with pytest.raises(InputError) as caught:
        compare(made(), other(made()))
    assert message in str(caught.value)


def test_xarray_is_what_the_file_holds(tmp_path):
    found = made("image-{}".format, periods=(0, 0, 5, 5))
    found.save(tmp_path / "study.h5")
    ours = found.to_xarray()
    with xarray.open_dataset(tmp_path / "study.h5", engine="h5netcdf") as data:
        assert set(ours.variables) == set(data.variables)
        for name, variable in data.variables.items():
            assert ours[name].dims == variable.dims
            assert (ours[name].values == variable.values).all() or name == "quadrature_split_error"
            for fact in ("long_name", "units") if name not in data.coords else ():
                assert ours[name].attrs[fact] == variable.attrs[fact]
    assert ours.attrs == found.attributes


def test_tidy_frame():
    found = made()
    frame = found.to_pandas()
    assert list(frame.columns) == ["test", "train", "method", "score"]
    assert len(frame) == 3 * 2 * 6
    for row in frame.itertuples():
        place = found.test_ids.index(row.test), found.train_ids.index(row.train)
        assert row.score == found.scores[row.method][place]


@pytest.mark.parametrize("ids", [int, 'a "quoted", {}\n'.format], ids=["int", "text"])
def test_files_of_other_programs_hold_every_score(tmp_path, ids):
    found = made(ids)
    found.scores["ideal"][0, 1] = np.nan
    for ending in ENDINGS:
        found.export(tmp_path / f"scores{ending}")
    frame = found.to_pandas()
    with (tmp_path / "scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(frame.columns)
    typed = [(type(ids(0))(a), type(ids(0))(b), m, float(s)) for a, b, m, s in rows]
    again = pandas.DataFrame(typed, columns=header)
    pandas.testing.assert_frame_equal(again, frame, check_exact=True)
    table = pyarrow.parquet.read_table(tmp_path / "scores.parquet")
    assert table.column_names == header
    assert table["test"].to_pylist() == frame["test"].tolist()
    assert np.array_equal(table["score"].to_numpy(), frame["score"], equal_nan=True)
    assert table.schema.metadata[b"sign"] == b"positive = proponent"
    with np.load(tmp_path / "scores.npz") as arrays:
        assert arrays["train"].tolist() == found.train_ids
        assert np.array_equal(arrays["ideal"], found.scores["ideal"], equal_nan=True)
        assert json.loads(str(arrays["attributes"])) == found.attributes
    text = (tmp_path / "scores.json").read_text()
    plain = json.loads(text, parse_constant=pytest.fail)
    assert plain["scores"]["ideal"][0][1] is None
    assert plain["scores"]["tracin"] == found.scores["tracin"].tolist()
    assert (plain["test_ids"], plain["train_ids"]) == (found.test_ids, found.train_ids)
    assert plain["completeness"]["ideal"]["data"] == found.completeness["ideal"]["data"].tolist()


@pytest.mark.parametrize("by_period", [False, True])
def test_self_influence_in_files_of_other_programs(tmp_path, by_period):
    found = of_themselves(['a "quoted", {}\n', "b", "c"])
    found.scores["loss"] = np.array([0.5, np.nan, 2.0])
    if by_period:
        parts = {name: np.stack([values, 2 * values], 1) for name, values in found.scores.items()}
        visits = np.ones((3, 2), int)
        found = replace(found, by_period=parts, visits_by_period=visits, periods=[0, 5])
    for ending in ENDINGS:
        found.export(tmp_path / f"self{ending}")
    expected = {"train": found.train_ids, **found.scores, "visits": found.visits}
    frame = pandas.DataFrame(expected)
    pandas.testing.assert_frame_equal(found.to_pandas(), frame, check_exact=True)
    with (tmp_path / "self.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    typed = [(train, *map(float, scores), int(visits)) for train, *scores, visits in rows]
    again = pandas.DataFrame(typed, columns=header)
    pandas.testing.assert_frame_equal(again, frame, check_exact=True)
    table = pyarrow.parquet.read_table(tmp_path / "self.parquet")
    pandas.testing.assert_frame_equal(table.to_pandas(), frame, check_exact=True)
    assert table.schema.metadata[b"unit"] == b"nats"
    plain = json.loads((tmp_path / "self.json").read_text(), parse_constant=pytest.fail)
    assert plain["train_ids"] == found.train_ids
    assert plain["loss"] == [0.5, None, 2.0]
    assert plain["visits"] == [2, 2, 2]
    with np.load(tmp_path / "self.npz") as arrays:
        assert all(np.array_equal(arrays[n], frame[n], equal_nan=n == "loss") for n in expected)
        assert json.loads(str(arrays["attributes"])) == found.attributes
        assert ("self_by_period" in arrays) == by_period == ("periods" in plain)
        if by_period:
            assert np.array_equal(arrays["self_by_period"], found.by_period["self"])
            assert arrays["periods"].tolist() == plain["periods"] == [0, 5]
            assert arrays["visits_by_period"].tolist() == plain["by_period"]["visits"]
            assert plain["by_period"]["loss"][1] == [None, None]


def test_where_scores_cannot_be_written(tmp_path):
    found = made()
    with pytest.raises(InputError) as caught:
        found.export(tmp_path / "scores.xlsx")
    assert str(caught.value) == (
        "expected a file that ends in .csv, .parquet, .npz, .json, found 'scores.xlsx'; the ending "
        "says in which form scores are written."
    )
    found.export(tmp_path / "scores.csv")
    with pytest.raises(OutputExistsError, match=r"scores.csv exists; choose another path or over"):
        found.export(tmp_path / "scores.csv")
    found.export(tmp_path / "scores.csv", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize(
    ("library", "ask"),
    [
        ("pandas", lambda found, _: found.to_pandas()),
        ("xarray", lambda found, _: found.to_xarray()),
        ("pyarrow", lambda found, folder: found.export(folder / "x.parquet")),
    ],
)
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, library, ask):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError) as caught:
        ask(made(), tmp_path)
    said = str(caught.value)
    assert f" needs {library}, which cannot be imported here (" in said
    assert "\n1. pip install 'tracin-replay[tables]'\n2. Or export to .csv, .npz or .json" in said
    assert not list(tmp_path.iterdir())
