"""Muon, whose factor is a matrix, against forward buffers and torch's own orthogonalisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz as orthogonal

from replay import Replay
from replay.path.test_means import WeightedGradients
from tests.helpers import reference, rules
from tests.helpers.accounts import polynomial
from tests.helpers.rules import O, Rule, expected, trace
from tracer import open_log
from tracer.errors import UnsupportedRuleError
from tracer.rules.muon import in_bfloat16, orthogonalising

COEFFICIENTS = 3.4445, -4.775, 2.0315
NUMBERS = {f"ns_coefficients.{k}": one for k, one in enumerate(COEFFICIENTS)}
NUMBERS |= {"eps": 1e-7, "ns_steps": 5}
MUON = [
    Rule("nesterov", O.Muon, {"lr": 0.02}),
    Rule("plain", O.Muon, {"lr": 0.02, "nesterov": False, "momentum": 0.8, "weight_decay": 0.3}),
]


def task():
    """Return a task whose parameters are matrices, a tall one and a wide one."""

    def model():
        torch.manual_seed(0)
        layers = nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)
        return nn.Sequential(*layers).double()

    return dataclasses.replace(rules.task(), model=model)


@pytest.mark.parametrize("before", [0, 4], ids=["start", "mid-run"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["", "accumulate"])
@pytest.mark.parametrize("clip", [None, 0.3], ids=["", "clip"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
@pytest.mark.parametrize("rule", MUON, ids=str)
def test_muon_equals_the_reference(tmp_path, rule, scheduled, clip, accumulate, before):
    loop = {"scheduled": scheduled, "clip": clip, "accumulate": accumulate, "before": before}
    run = trace(tmp_path / "run.h5", rule, steps=3, base=task(), **loop)
    found = Replay(run.path, run.task).influence([0, 1], methods=("tracin",), progress=False)
    scores, scale, terms = expected(run, rules.clip_factors(run, clip), nodes=0)
    assert (np.abs(found.scores["tracin"] - scores) <= 1e-10 * np.maximum(scale, 1e-3)).all()
    ours, size = found.terms["tracin"], 1e-3 + np.abs(terms["data"]).max()
    for term in ("data", "regulariser", "history"):
        assert np.abs(ours[term] - terms[term]).max() <= 1e-10 * size, term
    parts = sum(ours[term] for term in ("data", "regulariser", "history", "rounding"))
    assert np.abs(parts - terms["slope"]).max() <= 1e-12 * size


@pytest.mark.parametrize("rule", MUON, ids=str)
def test_gradients_that_are_no_single_products(tmp_path, monkeypatch, rule):
    run = trace(tmp_path / "run.h5", rule, steps=4, clip=0.3, base=task())
    ask = {"methods": ("tracin", "ideal"), "progress": False}
    factors = Replay(run.path, run.task).influence([0, 1], **ask).scores
    monkeypatch.setattr(WeightedGradients, "outer", lambda *_: None)
    written = Replay(run.path, run.task).influence([0, 1], **ask).scores
    for method, scores in factors.items():
        assert np.abs(written[method] - scores).max() <= 1e-13 * np.abs(scores).max()


def test_self_influence_is_the_quadratic_form(tmp_path):
    run = trace(tmp_path / "run.h5", MUON[1], steps=2, base=task())
    found = Replay(run.path, run.task).self_influence(progress=False)
    own = np.zeros(rules.TRAIN)
    with open_log(run.path) as log:
        for t in range(2):
            ids = log.batch_ids(t)
            for z, g in zip(ids, reference.train_gradients(run.task, log, t), strict=True):
                for n, one in g.items():
                    tall, matrix = one.shape[0] > one.shape[1], run.had[t][n].matrix
                    turned = one @ matrix.T if tall else matrix @ one
                    size = 0.02 * 0.2 * max(1, one.shape[0] / one.shape[1]) ** 0.5
                    own[z] += size * float((turned * one).sum()) * len(ids)
    assert np.abs(found.scores["self"] - own).max() <= 1e-12 * np.abs(own).max()


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (6, 6)])
def test_what_torch_makes_of_a_matrix_is_made_bit_for_bit(shape):
    m = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = orthogonal(m, COEFFICIENTS, 5, 1e-7)
    wide = m.T if shape[0] > shape[1] else m
    ours = in_bfloat16(wide, NUMBERS)[0]
    ours = ours.T if shape[0] > shape[1] else ours
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("examples", "exact", "nearest"), [(64, 0.03, 0.02), (4, 0.6, 0.6)])
def test_how_far_the_nearest_map_is(examples, exact, nearest):
    """Off the polynomial by bfloat16: percents where gradients fill the space, half where not."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    parts = torch.einsum("bp,bd->bpd", draw(examples, 16), draw(examples, 24))
    m = parts.sum(0)
    left, rest = orthogonalising(m, NUMBERS)
    plain, run = polynomial(m, COEFFICIENTS, 5), in_bfloat16(m, NUMBERS)[0].double()
    assert torch.allclose(left @ m + rest, run, rtol=0, atol=1e-13)
    assert 0.01 < (run - plain @ m).norm() / run.norm() < exact
    assert rest.norm() < min(nearest * run.norm(), 1.001 * (run - plain @ m).norm())
    assert (left - plain).norm() < 0.05 * plain.norm()
    moved = parts * (1 + 1e-7 * draw(*parts.shape))  # gradients in float32
    again, _ = orthogonalising(moved.sum(0), NUMBERS)
    change = (again @ moved - left @ parts).norm() / (left @ parts).norm()
    assert change < 1e-4


def test_a_run_in_float32_reproduces_and_shows_its_rounding(tmp_path):
    rule = dataclasses.replace(MUON[0], options={"lr": 0.02, "adjust_lr_fn": "match_rms_adamw"})
    run = trace(tmp_path / "run.h5", rule, steps=6, base=rules.in_dtype(task(), torch.float32))
    replay = Replay(run.path, run.task)
    assert str(replay.verify(progress=False)).startswith("steps 0:6 reproduce")
    found = replay.influence([0, 1], methods=("tracin",), progress=False)
    rounding, data = (np.abs(found.terms["tracin"][k]).max() for k in ("rounding", "data"))
    assert 1e-4 < rounding / data < 0.1
    assert found.attributes["as_in_the_run"].startswith("the matrix that orthogonalises")
    with pytest.raises(UnsupportedRuleError, match="made by Muon, whose update unrolled cannot"):
        replay.influence([0], methods=("unrolled",), progress=False)


def test_a_zero_gradient_moves_nothing_but_by_decay():
    left, rest = orthogonalising(torch.zeros(3, 4, dtype=torch.float64), NUMBERS)
    assert left.isfinite().all()
    assert not rest.any()
