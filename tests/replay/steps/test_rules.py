"""Every update rule's steps, divided among examples, against the forward-buffer reference."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from replay import Replay
from replay.steps.optimizer_state import StoredOptimizer
from replay.vectors import blocks
from tests.helpers import rules
from tests.helpers.cases import CASES, l1
from tests.helpers.comparing import compare, replayed
from tests.helpers.rules import BY_NAME, RULES, TEST, trace
from tracer import open_log
from tracer.errors import InputError, LogError
from tracer.log.read.run_log import RunLog

FIRST = {rule.kind: rule for rule in reversed(RULES)}.values()  # of each optimizer
LOOPS = list(itertools.product([False, True], [None, 0.3], [False, True], [0, 4]))
FEW = [LOOPS[k] for k in (0, 3, 5, 9, 14)]  # each two of the four together


@pytest.mark.parametrize(
    ("rule", "scheduled", "clip", "accumulate", "before"),
    [(rule, *loop) for rule in RULES for loop in (LOOPS if rule in FIRST else FEW)],
    ids=str,
)
def test_every_rule_equals_the_reference(tmp_path, rule, scheduled, clip, accumulate, before):
    run = trace(
        tmp_path / "run.h5", rule, scheduled=scheduled, clip=clip, accumulate=accumulate,
        before=before, steps=3,
    )  # fmt: skip
    compare(run, rules.clip_factors(run, clip))


@pytest.mark.parametrize("rule", FIRST, ids=str)
def test_every_rule_without_ideal_and_in_small_blocks(tmp_path, monkeypatch, rule):
    # tracin alone finds its terms while credits are found; nothing depends on where a cut is
    monkeypatch.setattr(blocks, "_BLOCK", 4)
    run = trace(tmp_path / "run.h5", rule, clip=0.3, before=2, steps=4, parts={"penalty": l1})
    compare(run, rules.clip_factors(run, 0.3), methods=("tracin",))


@pytest.mark.parametrize("parameters", [None, ["*weight"]], ids=["all", "some"])
@pytest.mark.parametrize(
    "name", ["mlp", "transformer-tied", "convolutional-groupnorm", "sequence-first",
             "module-twice-and-by-hand", "bare-parameter", "frozen-layer"],
)  # fmt: skip
def test_terms_of_tracin_are_the_same_beside_ideal(tmp_path, name, parameters):
    (case,) = [case for case in CASES if case.name == name]
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    task = dataclasses.replace(case, options=options).trace(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task=task)
    alone, beside = (
        run.influence(list(range(4)), methods=methods, parameters=parameters, steps=slice(1, None),
                      progress=False)
        for methods in (("tracin",), ("tracin", "ideal"))
    )  # fmt: skip
    size = np.abs(beside.terms["tracin"]["data"]).max()
    assert np.abs(beside.terms["tracin"]["history"]).max() > 1e-3 * size
    for term, values in beside.terms["tracin"].items():
        assert np.abs(alone.terms["tracin"][term] - values).max() <= 1e-12 * size, term
    assert np.abs(alone.scores["tracin"] - beside.scores["tracin"]).max() <= 1e-12 * size


@pytest.mark.parametrize("name", ["nesterov", "adamw-amsgrad", "rmsprop-centered", "adagrad"])
@pytest.mark.parametrize(("state_every", "memory"), [(2, 20_000), (100, 20_000), (100, 600_000)])
def test_a_small_budget_records_again(tmp_path, name, state_every, memory):
    run = trace(tmp_path / "run.h5", BY_NAME[name], steps=11, state_every=state_every, clip=0.3)
    whole = replayed(run, methods=("tracin", "ideal"))
    tight = replayed(run, methods=("tracin", "ideal"), memory=memory)
    for method, scores in whole.scores.items():
        assert np.abs(tight.scores[method] - scores).max() <= 1e-12 * np.abs(scores).max()
        for term, values in whole.terms[method].items():
            assert np.abs(tight.terms[method][term] - values).max() <= 1e-13, term


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "rmsprop-momentum"])
@pytest.mark.parametrize("window", [range(2, 5), range(3), range(4, 6)], ids=str)
def test_window(tmp_path, name, window):
    run = trace(tmp_path / "run.h5", BY_NAME[name], before=2, state_every=3)
    found = compare(run, rules.clip_factors(run, None), window=window)
    assert found.steps == list(window)
    assert found.drops["ideal"].shape == (len(window), TEST)


@pytest.mark.parametrize("steps", [range(2, 2), (0, 9), slice(0, 4, 2), (-1, 3)])
def test_window_that_is_none(tmp_path, steps):
    run = trace(tmp_path / "run.h5", BY_NAME["sgd"], steps=4)
    with pytest.raises(InputError, match="steps is a window a:b with 0 <= a < b <= 4 of this run"):
        replayed(run, steps=steps)


def test_log_without_the_state_before_the_window(tmp_path, monkeypatch):
    run = trace(tmp_path / "run.h5", BY_NAME["adam"], state_every=4)
    monkeypatch.setattr(RunLog, "states", lambda _: [4])
    with pytest.raises(LogError, match="holds no full state before step 0"):
        replayed(run)
    assert replayed(run, steps=(4, 6)).steps == [4, 5]


def test_second_moments_meet_those_on_file(tmp_path, monkeypatch):
    """Computed again, from gradients that may be rounded otherwise."""
    run = trace(tmp_path / "run.h5", BY_NAME["adam"], steps=6, state_every=3)
    seen = {}
    whole = StoredOptimizer.renewed

    def spy(self, memory, t, checks):
        found = whole(self, memory, t, checks)
        seen[t] = found.moments.get("0.weight", {}).get("exp_avg_sq")
        return found

    monkeypatch.setattr(StoredOptimizer, "renewed", spy)
    replayed(run)
    with open_log(run.path) as log:
        stored = log.state(3)["optimizer"]["state"]
        first = next(iter(stored.values()))
        torch.testing.assert_close(seen[3], first["exp_avg_sq"], rtol=1e-12, atol=0)
    assert {0, 3, 6} <= seen.keys()
