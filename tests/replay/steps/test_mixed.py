"""Two optimizers of one model: each step divided by the rule of each parameter."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from replay import Replay
from tests.helpers import reference, rules
from tests.helpers.comparing import compare
from tests.helpers.mixed import MIXED, MUON_ADAMW, SGD_ADAM, Mixed
from tests.helpers.rules import expected, trace
from tracer import open_log
from tracer.errors import UnsupportedRuleError
from tracer.rules.table import RULES

LOOPS = list(itertools.product([False, True], [None, 0.3], [False, True], [0, 4]))
FEW = [LOOPS[k] for k in (0, 3, 5, 9, 14)]  # each two of the four together


@pytest.mark.parametrize(
    ("rule", "scheduled", "clip", "accumulate", "before"),
    [
        (rule, *loop)
        for rule in MIXED
        for loop in (FEW if rule in (MUON_ADAMW, SGD_ADAM) else FEW[1:2])
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


@pytest.mark.parametrize("rule", [MUON_ADAMW, SGD_ADAM], ids=str)
def test_a_run_reproduces_also_where_its_steps_are_taken_again(tmp_path, rule):
    run = trace(tmp_path / "run.h5", rule, clip=0.3, accumulate=True, snapshot_every=4)
    replay = Replay(run.path, run.task)
    found = str(replay.verify(progress=False))
    assert found.startswith("steps 0:6 reproduce")
    assert "bit for bit" in found
    dense = trace(tmp_path / "dense.h5", rule, clip=0.3, accumulate=True)
    ask = {"methods": ("tracin", "tracincp"), "checkpoints": 2, "progress": False}
    whole = Replay(dense.path, dense.task)
    assert str(whole.verify(progress=False)).startswith("steps 0:6 reproduce")
    again = replay.influence([0, 1], **ask).scores
    for method, scores in whole.influence([0, 1], **ask).scores.items():
        assert np.abs(again[method] - scores).max() <= 1e-12 * np.abs(scores).max()


def clip_each(t, optimizer, model):
    """Clip the gradients of either optimizer by themselves."""
    optimizer[0].clip_grad_norm_(0.1)
    optimizer[1].clip_grad_norm_(0.2)


def test_each_clipped_by_itself(tmp_path):
    run = trace(tmp_path / "run.h5", SGD_ADAM, hook=clip_each)
    kappa = []
    with open_log(run.path) as log:
        for t in range(len(log)):
            rows = reference.train_gradients(run.task, log, t)
            whole = {n: sum(row[n] for row in rows) for n in rows[0]}
            kappa.append({})
            for kind, limit in ("weight", 0.1), ("bias", 0.2):
                own = [n for n in whole if kind in n]
                norm = sum(float((whole[n] ** 2).sum()) for n in own) ** 0.5
                kappa[-1] |= dict.fromkeys(own, min(1.0, limit / (norm + 1e-6)))
    assert all(one["0.weight"] != one["0.bias"] for one in kappa)
    found = compare(run, kappa, methods=("tracin",))
    assert found.attributes["steps_scaled_outside"] == 6
    few = trace(tmp_path / "few.h5", SGD_ADAM, hook=clip_each, snapshot_every=4)
    assert "bit for bit" in str(Replay(few.path, few.task).verify(progress=False))


def final(scales, clip=None):
    """Return the test losses after the run of ``trace`` with scaled losses, in plain torch."""
    known, generator = rules.task(), torch.Generator().manual_seed(3)
    model = known.model()
    optimizer = SGD_ADAM.made(model.parameters())
    for _ in range(6):
        optimizer.zero_grad()
        ids, _ = (torch.randperm(12, generator=generator)[: 4 - k].tolist() for k in range(2))
        losses = known.loss(model, known.collate([known.train[i] for i in ids]))
        (losses * scales[ids]).mean().backward()
        for part, limit in zip(optimizer.parts, (0.1, 0.2), strict=True) if clip else ():
            own = [p for group in part.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(own, limit)
        optimizer.step()
    with torch.no_grad():
        return known.loss(model, known.collate(list(known.test))).numpy()


def test_counterfactual_runs_are_the_loop(tmp_path):
    """One by one, and many of them in one stack."""
    run = trace(tmp_path / "run.h5", SGD_ADAM)
    replay, one = Replay(run.path, run.task), torch.ones(12, dtype=torch.float64)
    removed = [[3], [1, 5, 7]] + [[k % 12, (k + 5) % 12] for k in range(32)]
    found = replay.counterfactual([0, 1], remove=removed, progress=False)
    alone = replay.counterfactual([0, 1], remove=removed[:2], progress=False)
    for k in (0, 1, 2):
        expected = final(one.index_fill(0, torch.tensor(removed[k]), 0.0))
        assert np.abs(found.values[k] - expected).max() < 1e-12
        assert k == 2 or np.array_equal(found.values[k], alone.values[k])


@pytest.mark.parametrize("clip", [None, clip_each], ids=["", "clip"])
def test_the_derivative_is_that_of_the_loop(tmp_path, clip):
    run = trace(tmp_path / "run.h5", SGD_ADAM, hook=clip)
    ask = {"methods": ("unrolled",), "progress": False}
    found = Replay(run.path, run.task).influence([0, 1], **ask).scores["unrolled"]
    direction = torch.linspace(-1, 1, 12, dtype=torch.float64)
    one, h = torch.ones(12, dtype=torch.float64), 1e-5
    ends = [final(one + sign * h * direction, clip) for sign in (1, -1)]
    expected = (ends[1] - ends[0]) / (2 * h)
    assert np.abs(found @ direction.numpy() - expected).max() < 1e-7 * np.abs(expected).max()


def test_an_optimizer_whose_rule_is_not_known(tmp_path):
    class Own(torch.optim.SGD):
        """Somebody's."""

    own = dataclasses.replace(MUON_ADAMW.weights, kind=Own, options={"lr": 0.1})
    run = trace(tmp_path / "run.h5", Mixed(own, MUON_ADAMW.biases), steps=2)
    said = r"made by .*Own \+ AdamW, whose update cannot be split"
    with pytest.raises(UnsupportedRuleError, match=said):
        Replay(run.path, run.task).influence([0], methods=("tracin",), progress=False)
    known = Replay(run.path, run.task, rules={"Own": RULES["SGD"]})
    assert str(known.verify(progress=False)).startswith("steps 0:2 reproduce")
    unsplit = Replay(run.path, run.task).influence([0], methods=("tracincp",), progress=False)
    assert np.isfinite(unsplit.scores["tracincp"]).all()
