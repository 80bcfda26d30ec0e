"""Recipes for other libraries, as the documentation has them."""

from __future__ import annotations

import numpy as np
import pytest

from replay import Replay
from tests.helpers.cases import CASES
from tests.house.test_docs import ROOT, blocks


def test_dattris_metrics_are_ours(tmp_path):
    pytest.importorskip("dattri.metric", reason="dattri is in no extra")
    case = next(iter(CASES))
    task = case.trace(tmp_path / "run.h5")
    run, tests = Replay(tmp_path / "run.h5", task), list(task.test)[:3]
    quiet = {"progress": False}
    space = {
        "influence": run.influence(tests, methods=("tracin",), **quiet),
        "subsets": run.subsets(tests, count=8, **quiet),
        "left_out": run.leave_one_out(tests, **quiet),
    }
    (recipe,) = (b for b in blocks(ROOT / "docs/how-to/metrics.md") if b.title == "dattri")
    exec(recipe.text, space)
    for found, truth, metric in (
        ("of_subsets", "subsets", "lds"),
        ("of_single_runs", "left_out", "pearson"),
    ):
        agreement = space["influence"].agreement(truth=space[truth], **quiet)
        (pair,) = agreement.pairs
        expected = agreement.get(pair, metric).values
        np.testing.assert_allclose(space[found].numpy(), expected, rtol=1e-9)
