"""Two optimizers of one model: each step divided by the rule of each parameter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from replay import Replay
from tests.helpers import rules
from tests.helpers.comparing import compare
from tests.helpers.mixed import MIXED, MUON_ADAMW, SGD_ADAM
from tests.helpers.rules import expected, trace

LOOPS = list(itertools.product([False, True], [None, 0.3], [False, True], [0, 4]))
FEW = [LOOPS[k] for k in (0, 3, 5, 9, 14)]  # each two of the four together


@pytest.mark.parametrize(
    ("rule", "scheduled", "clip", "accumulate", "before"),
    [
        (rule, *loop)
        for rule in MIXED
        for loop in (FEW if rule in (MUON_ADAMW, SGD_ADAM) else FEW[1:3])
    ],
    ids=str,
)
def test_both_equal_the_reference(tmp_path, rule, scheduled, clip, accumulate, before):
    loop = {"scheduled": scheduled, "clip": clip, "accumulate": accumulate, "before": before}
    run = trace(tmp_path / "run.h5", rule, steps=3, **loop)
    if rule is not MUON_ADAMW:
        compare(run, rules.clip_factors(run, clip), methods=("tracin",))
        return
    found = Replay(run.path, run.task).influence([0, 1], methods=("tracin",), progress=False)
    scores, scale, terms = expected(run, rules.clip_factors(run, clip), nodes=0)
    assert (np.abs(found.scores["tracin"] - scores) <= 1e-10 * np.maximum(scale, 1e-3)).all()
    ours, size = found.terms["tracin"], 1e-3 + np.abs(terms["data"]).max()
    for term in ("data", "regulariser", "history"):
        assert np.abs(ours[term] - terms[term]).max() <= 1e-10 * size, term
    parts = sum(ours[term] for term in ("data", "regulariser", "history", "rounding"))
    assert np.abs(parts - terms["slope"]).max() <= 1e-12 * size
