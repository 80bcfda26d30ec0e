"""Optimizers of sparse gradients: exact against forward buffers, bitwise untraced, or refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task, UpdateRule
from tests.helpers import rules
from tests.helpers.cases import cross_entropy
from tests.helpers.comparing import compare, same
from tests.helpers.rules import O, Rule, trace, untraced
from tests.replay.steps.test_every_optimizer import trained
from tests.replay.steps.test_rules import FEW
from tracer import TracingOptimizer
from tracer.errors import UnsupportedRuleError

SPARSE = [
    Rule("sparse-adam", O.SparseAdam, {"lr": 0.05}),
    Rule("sparse-adam-maximize", O.SparseAdam, {"lr": 0.02, "betas": (0.7, 0.6), "maximize": True}),
    Rule("sgd", O.SGD, {"lr": 0.3}),
    Rule("adagrad", O.Adagrad, {"lr": 0.1, "lr_decay": 0.1}),
]


class Rows(nn.Module):
    """Three lookups an example; the last has a gradient of 0, and is in the sparse one still."""

    def __init__(self, sparse=True):
        super().__init__()
        self.rows = nn.Embedding(12, 3, sparse=sparse, padding_idx=0)
        self.weights = torch.tensor([1.0, 0.5, 0.0])

    def forward(self, x):
        return (self.rows(x) * self.weights.to(self.rows.weight)[:, None]).sum(1)


def task(dtype=torch.float64, model=Rows, **parts):
    def made():
        torch.manual_seed(0)
        return model().to(dtype)

    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 12, (14, 3), generator=generator)
    data = list(zip(x, torch.randint(0, 3, (14,), generator=generator), strict=True))
    return Task(made, cross_entropy, data[:12], data[12:], **parts)


def clipped(_t, _optimizer, model):
    """Clip by hand: torch's ``clip_grad_norm_`` takes no sparse gradient."""
    for parameter in model.parameters():
        norm = parameter.grad.coalesce().values().norm()
        parameter.grad.mul_((0.3 / (norm + 1e-6)).clamp(max=1.0))


ROWS = [(rule, *loop) for k, rule in enumerate(SPARSE) for loop in (FEW[k::3] if k else FEW)]


@pytest.mark.parametrize(("rule", "scheduled", "clip", "accumulate", "before"), ROWS, ids=str)
def test_every_one_equals_the_reference(tmp_path, rule, scheduled, clip, accumulate, before):
    how = {"scheduled": scheduled, "accumulate": accumulate, "before": before, "steps": 4}
    run = trace(tmp_path / "run.h5", rule, base=task(), hook=clipped if clip else None, **how)
    run.model = Rows(sparse=False)  # torch.func has no sparse gradients
    compare(run, rules.clip_factors(run, clip))


@pytest.mark.parametrize("rule", SPARSE, ids=str)
def test_training_is_bitwise_the_same_and_every_step_is_proven(tmp_path, rule):
    clips = bool(SPARSE.index(rule) % 2)
    hook = clipped if clips else None
    loop = {"steps": 5, "before": 2, "scheduled": True, "accumulate": not clips, "hook": hook}
    for every in (1, 3):  # full snapshots, and steps that are taken again
        path = tmp_path / f"{every}.h5"
        run = trace(path, rule, base=task(torch.float32), snapshot_every=every, **loop)
        same(run.end, untraced(run, **loop))
        found = Replay(path, run.task).verify(progress=False)
        assert found.unsplit is None
        assert str(found).startswith("steps 0:5 reproduce")
    assert found.proof.proved == 5


def test_a_run_that_goes_on_and_one_without_an_example(tmp_path):
    """The number of steps in SparseAdam's state is no tensor."""
    base, path = task(torch.float32), tmp_path / "run.h5"
    kind, options = O.SparseAdam, {"lr": 0.05}
    same(trained(base, kind, options, path), trained(base, kind, options))
    run = Replay(path, base)
    assert str(run.verify(progress=False)) == "steps 0:7 reproduce"
    assert np.isfinite(run.leave_one_out([0], progress=False).values).all()
    assert (run.self_influence(progress=False).scores["self"] >= 0).all()


class Tower(nn.Module):
    """A table with sparse gradients under a layer with dense ones, both looked at by a penalty."""

    def __init__(self):
        super().__init__()
        self.table, self.top = Rows(), nn.Linear(3, 3)

    def forward(self, x):
        return self.top(self.table(x).tanh())


def few_rows(model):
    return 0.1 * model.table.rows(torch.tensor([1, 2])).square().sum() + model.top.bias.sum()


def test_beside_an_optimizer_of_dense_gradients(tmp_path):
    base = task(model=Tower, penalty=few_rows)
    model = base.model()
    adam, rows = (
        O.Adam(model.top.parameters(), lr=0.05),
        O.SparseAdam(model.table.parameters(), 0.1),
    )
    with TracingOptimizer([adam, rows], model, tmp_path / "run.h5") as optimizer:
        for ids in ([0, 1, 2], [3, 4], [5, 1, 6], [0, 7]):
            optimizer.zero_grad()
            losses = base.loss(model, base.collate([base.train[i] for i in ids]))
            (losses.mean() + few_rows(model)).backward()
            optimizer.step(batch_ids=ids)
    run = Replay(tmp_path / "run.h5", base)
    assert str(run.verify(progress=False)) == "steps 0:4 reproduce"
    found = run.influence(
        [0, 1], methods=("tracin", "ideal"), ideal_tolerance=1e-12, progress=False
    )
    assert "which rows had a gradient" in found.attributes["as_in_the_run"]
    terms = found.terms["ideal"]
    size = np.abs(terms["data"]).max()
    assert np.abs(terms["regulariser"]).max() > 1e-3 * size
    for term in ("rounding", "residual"):
        assert np.abs(terms[term]).max() <= 1e-10 * size
    assert np.allclose(found.scores["ideal"].sum(1), terms["data"].sum(0), rtol=1e-10, atol=1e-13)


class Own(O.SGD):
    """Of somebody else's."""


class OwnRule(UpdateRule):
    """Says nothing of sparse gradients."""


DENSE = dataclasses.replace(task(), model=lambda: Rows(sparse=False).double())
REFUSED = [
    (Own, {"Own": OwnRule()}, task(), r"(?s)^step 0: the gradient of 'rows.weight' is sparse, and "
     r"what.* those of SGD, Adagrad, SparseAdam can.\n  1. Build the model with sparse=False;"),
    (O.SparseAdam, None, DENSE, r"(?s)^step 0 of .*SparseAdam moved the rows of a sparse gradient, "
     r"but .* \(12, 3\) is dense.*  1. Build task.model as in the run: torch.nn.Embedding"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "own", "again", "why"), REFUSED, ids=["own rule", "dense model"])
def test_what_is_refused(tmp_path, kind, own, again, why):
    run = trace(tmp_path / "run.h5", Rule("", kind, {"lr": 0.1}), base=task(), steps=2)
    replay = Replay(run.path, again, rules=own)
    with pytest.raises(UnsupportedRuleError, match=why):
        replay.influence([0], methods=("tracin",), progress=False)
    assert np.isfinite(replay.drops([0], progress=False)).all()


def test_torch_clips_no_sparse_gradient():
    """As of torch 2.13; with a wrapper it is torch's own error."""
    model = task().model()
    task().loss(model, task().collate(task().train[:2])).sum().backward()
    with pytest.raises(NotImplementedError, match="linalg_vector_norm"):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
