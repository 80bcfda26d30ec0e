"""A second replay of a run says where the test data changed since the first."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from replay import Influence, Replay
from tests.helpers.cases import CASES
from tracer.errors import InputWarning

KINDS = {
    "all": {},
    "walking": {"methods": "tracin"},
    "summing": {"methods": "tracincp", "checkpoints": [2, 5]},
    "window": {"methods": "ideal", "steps": "1:3"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.h5"
    return path, CASES[2].trace(path)


def replayed(run, ids=(0, 1, 3), memory="2GiB", **question):
    path, task = run
    return Replay(path, task=task, memory=memory).influence(ids, progress=False, **question)


def moved(task, identity):
    """Return a task in which one test example is another."""
    x, y = task.test[identity]
    return replace(task, test={**task.test, identity: (x + 0.1, y)})


@pytest.mark.parametrize("question", KINDS.values(), ids=KINDS.keys())
def test_changed_test_data_are_said(run, tmp_path, question):
    path, task = run
    place = tmp_path / "study.h5"
    found = replayed(run, **question)
    found.save(place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replayed(run, memory="4kB", **question).save(place, overwrite=True)
        replayed(run, ids=[3, 0], **question).save(place, overwrite=True)  # in other rows
        found.save(place, overwrite=True)
    other = replayed((path, moved(task, 1)), **question)
    said = r"changed since .*study.h5 .* other test values for 1 of 3 test examples \(1\)\.\n1\. "
    with pytest.warns(InputWarning, match=said):
        other.save(place, overwrite=True)
    assert np.array_equal(Influence.load(place).values["after"], other.values["after"])


def test_values_are_those_of_the_ends(run):
    found = replayed(run)
    total = found.values["before"] - found.values["after"]
    assert np.allclose(total, found.completeness["ideal"]["measured"], atol=1e-12)
    assert (found.attributes["values_before"], found.attributes["values_after"]) == (0, 6)
    summed = replayed(run, methods="tracincp", checkpoints=[6, 0])
    assert np.allclose(summed.values["before"], found.values["before"])
    assert np.allclose(summed.values["after"], found.values["after"])


@pytest.mark.parametrize("change", ["another run", "another window", "other examples", "no values"])
def test_what_cannot_be_compared_says_nothing(run, tmp_path, change):
    path, task = run
    place, other = tmp_path / "study.h5", replayed((path, moved(task, 1)), methods="tracin")
    if change == "another run":
        other.attributes["run_uuid"] = "another"
    elif change == "another window":
        other = replayed((path, moved(task, 1)), methods="tracin", steps="0:2")
    elif change == "other examples":
        other = replayed((path, moved(task, 1)), ids=[2], methods="tracin")
    else:
        other.values.clear()
    other.save(place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replayed(run, methods="tracin").save(place, overwrite=True)
