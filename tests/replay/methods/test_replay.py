"""Every quantity of a replay against the naive reference, on every case."""

from __future__ import annotations

import numpy as np
import pytest

from replay import Replay
from tests.helpers.cases import CASES
from tests.helpers.reference import TERMS, influence, tracincp
from tracer import open_log

TEST_IDS = [2, 0, 3]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def compared(request, tmp_path_factory):
    """A traced run with its replay and its reference."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    task = request.param.trace(path)
    run = Replay(path, task=task)
    found = run.influence(TEST_IDS, checkpoints=[0, 2, 3], ideal_tolerance=1e-12, progress=False)
    with open_log(path) as log:
        expected = influence(task, log, TEST_IDS)
        heuristic = tracincp(task, log, TEST_IDS, found.train_ids, [0, 2, 3])
    return run, found, expected, heuristic


@pytest.mark.parametrize("method", ["tracin", "ideal"])
def test_scores_equal_the_reference(compared, method):
    _, found, expected, _ = compared
    for (j, z), score in expected.scores[method].items():
        allowed = 1e-10 * max(expected.scale[method][j, z], 1e-300)
        assert abs(found.scores[method][j, found.train_ids.index(z)] - score) <= allowed


@pytest.mark.parametrize("method", ["tracin", "ideal"])
def test_never_visited_is_exactly_zero(compared, method):
    _, found, expected, _ = compared
    visited = {z for _, z in expected.scores[method]}
    for k, z in enumerate(found.train_ids):
        if z not in visited:
            assert (found.scores[method][:, k] == 0).all()


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("method", ["tracin", "ideal"])
def test_completeness_terms_equal_the_reference(compared, method, term):
    _, found, expected, _ = compared
    size = 1e-10 * (1e-3 + np.abs(expected.terms[method]["data"]).max())
    difference = np.abs(found.terms[method][term] - expected.terms[method][term])
    assert difference.max() <= size
    assert np.allclose(found.completeness[method][term], found.terms[method][term].sum(0))


@pytest.mark.parametrize("method", ["tracin", "ideal"])
def test_completeness_identity(compared, method):
    _, found, _, _ = compared
    terms = found.terms[method]
    whole = sum(terms[name] for name in TERMS if name != "measured")
    assert np.abs(whole - terms["measured"]).max() <= 1e-12 * (1 + np.abs(terms["data"]).max())
    scores = found.scores[method].sum(1)
    assert np.allclose(scores, terms["data"].sum(0), rtol=1e-10, atol=1e-13)


def test_ideal_is_complete(compared):
    _, found, _, _ = compared
    terms = found.terms["ideal"]
    assert np.abs(terms["residual"]).max() <= 1e-10 * (1e-3 + np.abs(terms["data"]).max())


@pytest.mark.parametrize("method", ["tracin", "ideal"])
def test_drops_equal_the_reference(compared, method):
    run, found, expected, _ = compared
    size = 1e-10 * (1e-3 + np.abs(expected.drops[method]).max())
    assert np.abs(found.drops[method] - expected.drops[method]).max() <= size
    if method == "ideal":
        again = run.drops(TEST_IDS, progress=False)
        assert np.abs(again - found.drops["ideal"]).max() == 0


def test_tracincp_equals_the_reference(compared):
    _, found, _, heuristic = compared
    difference = np.abs(found.scores["tracincp"] - heuristic).max()
    assert difference <= 1e-10 * max(np.abs(heuristic).max(), 1e-12)
