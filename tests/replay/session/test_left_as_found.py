"""Replays leave things as they were, and their results depend on nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from tests.helpers.cases import CASES, Case, cross_entropy, mlp, normalised
from tests.helpers.replaying import TASK, changed, influence, trained
from tracer.errors import InputError


def test_everything_is_left_as_found(path):
    case = Case("batchnorm", normalised)
    built = normalised().double()
    built[1].eval()
    built[0].weight.requires_grad_(False)
    built[4].weight.grad = torch.ones_like(built[4].weight)
    task = changed(case.trace(path), model=lambda: built)
    state = {k: v.clone() for k, v in built.state_dict().items()}
    modes = [module.training for module in built.modules()]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    influence(path, task)
    assert all(torch.equal(state[k], v) for k, v in built.state_dict().items())
    assert modes == [module.training for module in built.modules()]
    assert [p.requires_grad for p in built.parameters()][:2] == [False, True]
    assert torch.equal(built[4].weight.grad, torch.ones_like(built[4].weight))
    assert not built[0]._forward_hooks
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("name", ["batchnorm-dropout", "transformer-tied", "bare-parameter"])
def test_results_do_not_depend_on_the_memory_budget_or_order(tmp_path, name):
    (case,) = [case for case in CASES if case.name == name]
    task = case.trace(tmp_path / "run.h5")
    whole = Replay(tmp_path / "run.h5", task=task).influence([0, 1, 2, 3], progress=False)
    tight = Replay(tmp_path / "run.h5", task=task, memory=20_000)
    found = tight.influence([3, 1, 0, 2], progress=False, train_ids=[9, 4, 0])
    columns = [whole.train_ids.index(z) for z in (9, 4, 0)]
    for method, scores in found.scores.items():
        expected = whole.scores[method][[3, 1, 0, 2]][:, columns]
        assert np.abs(scores - expected).max() <= 1e-12 * np.abs(expected).max()
    assert (found.terms["tracin"]["data"] != 0).any()


class BatchStatistics(nn.Module):
    """Depends on its batch in eval mode too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.top = nn.Linear(4, 3)

    def forward(self, x):
        if not self.training and len(x) == 1:
            return self.top(x)
        return self.top(self.norm(x))


def test_test_examples_that_are_not_independent_are_taken_alone(tmp_path):
    task = Case("statistics", BatchStatistics).trace(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task=task)
    together = run.influence([0, 1, 2], progress=False)
    alone = [run.influence([k], progress=False).scores for k in (0, 1, 2)]
    for method, scores in together.scores.items():
        rows = np.concatenate([row[method] for row in alone])
        assert np.abs(scores - rows).max() <= 1e-13


def test_float32_run_in_float64(tmp_path):
    task = Case("single", mlp, dtype=torch.float32).trace(tmp_path / "run.h5")
    native = Replay(tmp_path / "run.h5", task=task).influence([0, 1], progress=False)
    double = Replay(tmp_path / "run.h5", task=task, dtype=torch.float64)
    found = double.influence([0, 1], progress=False)
    for method, scores in found.scores.items():
        allowed = 1e-3 if method == "ideal" else 1e-5  # the default ideal_tolerance is 1e-3
        assert np.abs(native.scores[method] - scores).max() <= allowed * np.abs(scores).max()


def test_bfloat16_run(tmp_path):
    def loss(model, batch):
        return cross_entropy(model, (batch[0].to(next(model.parameters()).dtype), batch[1]))

    case = Case("half", mlp, loss, dtype=torch.bfloat16)
    task = case.trace(tmp_path / "run.h5")
    found = Replay(tmp_path / "run.h5", task=task).influence([0, 1], progress=False)
    assert np.isfinite(found.scores["tracin"]).all()
    identity = found.terms["ideal"]
    whole = sum(v for k, v in identity.items() if k != "measured")
    assert np.abs(whole - identity["measured"]).max() <= 1e-6


def test_sequence_data_and_negative_ids(path):
    data = list(TASK.train.values())
    task = Task(TASK.model, TASK.loss, data, data)
    trained(path, task)
    run = Replay(path, task=task)
    assert run.influence([0], progress=False).train_ids == list(range(10))
    with pytest.raises(InputError, match="no example -1"):
        run.influence([-1])
