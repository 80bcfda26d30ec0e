"""Result files of every version so far, and files that are something else."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from replay import Influence, SelfInfluence
from replay.results import variables
from tests.helpers.cases import CASES
from tests.helpers.places import ROOT, TESTS
from tests.helpers.results import made
from tracer.errors import InputError

FILES = sorted((TESTS / "data").glob("result-version-*.h5"))


def loader(path):
    return SelfInfluence if "-self-" in path.name else Influence


def made_self(ids=int):
    """Return a small self-influence."""
    scores = {"self": np.array([3.0, 1.0]), "own_drop": np.array([2.0, 4.0])}
    return SelfInfluence([ids(4), ids(9)], scores, np.array([2, 0]), {"log": "run.h5"})


def same(found, expected):
    """Say whether tables hold what JSON says, bit for bit; None is not a number."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        return all(same(found[key], value) for key, value in expected.items())
    wanted = np.array(expected, dtype=found.dtype)
    return np.array_equal(found, wanted, equal_nan=found.dtype.kind == "f")


def test_every_version_has_fixtures():
    assert len(FILES) == 4 * (variables.INFLUENCE.version + 1)
    assert variables.INFLUENCE.version == variables.SELF_INFLUENCE.version


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_of_every_version_open(path):
    found = loader(path).load(path)
    expected = json.loads(path.with_suffix(".json").read_text())
    for name, values in expected.items():
        if isinstance(values, list) and name != "visits":
            assert getattr(found, name) == values, name
        elif name != "attributes":
            assert same(getattr(found, name), values), name
    assert found.attributes == expected["attributes"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_of_every_version_are_written_as_they_are_read(path, tmp_path):
    found = loader(path).load(path)
    found.save(tmp_path / "again.h5")
    again = loader(path).load(tmp_path / "again.h5")
    assert again.attributes == found.attributes
    assert same(again.scores, {name: v.tolist() for name, v in found.scores.items()})


@pytest.mark.parametrize("ids", [int, "row {}".format], ids=["int", "str"])
def test_self_influence_round_trip(tmp_path, ids):
    found = made_self(ids)
    found.save(tmp_path / "run.self.h5")
    again = SelfInfluence.load(tmp_path / "run.self.h5")
    assert again.train_ids == found.train_ids
    assert list(again.scores) == ["self", "own_drop"]
    assert same(again.scores, {"self": [3.0, 1.0], "own_drop": [2.0, 4.0]})
    assert again.visits.dtype == np.int64
    assert again.visits.tolist() == [2, 0]
    assert again.attributes == {"log": "run.h5"}


@pytest.mark.parametrize("kind", [Influence, SelfInfluence])
def test_what_is_something_else_names_its_loader(tmp_path, kind):
    CASES[0].trace(tmp_path / "run.h5")
    made().save(tmp_path / "influence.h5")
    made_self().save(tmp_path / "self.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    messages = {
        "run.h5": "is a run log, not a result; read it with tracer.open_log",
        "influence.h5": "holds influence; read that with Influence.load",
        "self.h5": "holds self-influence; read that with SelfInfluence.load",
        "other.h5": "is not a result of tracin-replay",
    }
    del messages["influence.h5" if kind is Influence else "self.h5"]
    for name, message in messages.items():
        with pytest.raises(InputError, match=f"{name} {message}"):
            kind.load(tmp_path / name)


@pytest.mark.parametrize("make", [made, made_self])
def test_newer_and_damaged_versions(tmp_path, make):
    path = tmp_path / "study.h5"
    make().save(path)
    with h5py.File(path, "r+") as file:
        assert file.attrs["format_version"] == 1
        file.attrs["format_version"] = 2
    with pytest.raises(InputError, match="has result format 2, this version reads up to 1; upg"):
        type(make()).load(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = "new"
    with pytest.raises(InputError, match="is a damaged result: its format version is 'new'"):
        type(make()).load(path)


def test_variables_that_do_not_fit_the_labels(tmp_path):
    found = made()
    with_gap = replace(found, train_ids=found.train_ids[:-1])
    with_gap.save(tmp_path / "study.h5")
    with pytest.raises(InputError, match=r"tracin is of shape \(2, 6\), its dimensions say \(2, 5"):
        Influence.load(tmp_path / "study.h5")


def test_every_variable_of_a_file_is_listed(tmp_path):
    """A file holds its format's dimensions and listed variables, each with its meaning."""
    found = made(periods=(0, 0, 5, 5))
    found.save(tmp_path / "study.h5")
    methods, terms = list(found.scores), list(found.terms["tracin"])
    kinds = [variables.SCORES, variables.DROPS, variables.TERMS, *variables.QUADRATURE.values()]
    kinds += [*variables.VALUES.values(), variables.SCORES_BY_PERIOD, variables.PERIOD_OF_STEP]
    listed = {kind.called(m, t): kind for kind in kinds for m in methods for t in terms}
    with h5py.File(tmp_path / "study.h5") as file:
        assert set(file) <= set(listed) | set(variables.INFLUENCE.dimensions)
        for name in set(file) - set(variables.INFLUENCE.dimensions):
            kind = listed[name]
            stored = file[name]
            assert [axis[0].name.strip("/") for axis in stored.dims] == list(kind.dimensions)
            assert stored.dtype == ("int8" if kind.dtype == "bool" else kind.dtype)
            unit = b"nats" if kind.unit == variables.VALUE else b""
            assert stored.attrs["units"].tobytes().strip(b"\0") == unit
            assert stored.attrs["long_name"]


def test_the_documentation_lists_every_variable():
    page = (ROOT / "docs" / "result-format.md").read_text()
    kinds = [kind for kind in vars(variables).values() if isinstance(kind, variables.Variable)]
    assert len(kinds) == 23
    for kind in kinds:
        row = f"| `{kind.called('METHOD', 'TERM')}` |"
        (line,) = [line for line in page.splitlines() if line.startswith(row)]
        assert ("int8" if kind.dtype == "bool" else kind.dtype) in line
        assert len(kind.dimensions) == 1 or ", ".join(kind.dimensions) in line
    for kind in variables.FORMATS:
        assert f"`{kind.name}`" in page
