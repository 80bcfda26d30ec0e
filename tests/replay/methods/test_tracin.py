"""TracIn under every rule: closed forms, the paper's formula, blocks, penalties and measures."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from replay import Influence, Replay
from tests.helpers import reference, rules
from tests.helpers.cases import Case
from tests.helpers.comparing import compare, replayed
from tests.helpers.rules import BY_NAME, TEST, expected, trace
from tracer import TracingOptimizer, open_log
from tracer.errors import InputError, UnsupportedRuleError
from tracer.log.read.run_log import RunLog

O = torch.optim  # noqa: E741


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "rmsprop-momentum"])
def test_tracin_sgd_is_the_papers_formula(tmp_path, name):
    run = trace(tmp_path / "run.h5", BY_NAME[name], clip=0.3, scheduled=True)
    found = replayed(run, methods=("tracin-sgd", "tracin"))
    scores = np.zeros_like(found.scores["tracin-sgd"])
    with open_log(run.path) as log:
        for t in range(len(log)):
            for j in range(TEST):
                at = log.parameters(t)
                q = reference.test_gradient(run.task, at, {}, j)[1]
                (rate,) = log.learning_rate(t)
                products = reference.train_derivatives(run.task, log, t, q) * rate
                for z, product in zip(log.batch_ids(t), products.tolist(), strict=True):
                    scores[j, z] += product
    assert np.abs(found.scores["tracin-sgd"] - scores).max() <= 1e-12
    terms = found.terms["tracin-sgd"]
    assert np.allclose(terms["data"] + terms["residual"], terms["measured"])
    assert np.allclose(found.drops["tracin-sgd"], terms["data"])
    assert np.abs(found.scores["tracin"] - scores).max() > 1e-4


def test_no_momentum_is_sgd(tmp_path, monkeypatch):
    run = trace(tmp_path / "run.h5", BY_NAME["sgd"])
    plain = replayed(run, methods=("tracin", "ideal"))
    monkeypatch.setattr(RunLog, "ever_used", lambda *_: True)  # the backward way
    found = replayed(run, methods=("tracin", "ideal"))
    for method, scores in plain.scores.items():
        assert np.abs(found.scores[method] - scores).max() <= 1e-13


class Constant(nn.Module):
    """A model whose gradients never change."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x @ self.w


@pytest.mark.parametrize("nesterov", [False, True])
def test_closed_forms_of_momentum(tmp_path, nesterov):
    case = Case("constant", Constant, lambda model, batch: model(batch[0]), "real")
    task, mu, lr, steps = case.task(), 0.9, 0.1, 400
    model = task.model()
    inner = torch.optim.SGD(model.parameters(), lr=lr, momentum=mu, nesterov=nesterov)
    with TracingOptimizer(inner, model, tmp_path / "run.h5") as optimizer:
        for t in range(steps):
            optimizer.zero_grad()
            z = {0: 3, steps - 1: 5}.get(t, 1)
            task.loss(model, task.collate([task.train[z]])).mean().backward()
            optimizer.step(batch_ids=[z])
    run = Replay(tmp_path / "run.h5", task=task)
    scores = run.influence([2], methods=("tracin",), progress=False).scores["tracin"][0]
    x = {z: (task.train[z][0] @ task.test[k][0]).item() for z in (1, 3, 5) for k in [2]}
    # visited once, at the beginning: it earns from every later step, in all 1 / (1 - mu)
    first = lr * x[3] / (1 - mu)
    assert np.isclose(scores[3], first, rtol=1e-12)
    # visited at the last step: the first coefficient alone
    assert np.isclose(scores[5], lr * x[5] * (1 + mu if nesterov else 1), rtol=1e-12)
    later = run.influence([2], methods=("tracin",), steps=(1, steps), progress=False)
    history = later.completeness["tracin"]["history"]
    now = lr * x[3] * (1 + mu if nesterov else 1)
    assert np.isclose(history, first - now, rtol=1e-12)


@pytest.mark.parametrize("name", ["heavy-ball", "adamw"])
def test_duplicates_and_merging(tmp_path, name):
    run = trace(tmp_path / "run.h5", BY_NAME[name])
    twin = {k: run.task.train[k // 2] for k in range(2 * rules.TRAIN)}
    scores = replayed(run, methods=("tracin", "ideal")).scores
    # the same run, every example's visits spread over two IDs
    task = rules.task()
    task = type(task)(task.model, task.loss, twin, task.test)
    model = task.model()
    inner = run.rule.kind(model.parameters(), **run.rule.options)
    with (
        open_log(run.path) as log,
        TracingOptimizer(inner, model, tmp_path / "two.h5") as optimizer,
    ):
        for t in range(len(log)):
            ids = [2 * z + (t + z) % 2 for z in log.batch_ids(t)]
            optimizer.zero_grad()
            task.loss(model, task.collate([twin[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    found = Replay(tmp_path / "two.h5", task=task).influence(
        list(range(TEST)), methods=("tracin", "ideal"), progress=False
    )
    for method, split in found.scores.items():
        assert np.allclose(split[:, ::2] + split[:, 1::2], scores[method], rtol=1e-12, atol=1e-15)


BLOCKS = [["0.*"], ["2.weight", "2.bias"]]


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
def test_blocks_of_parameters_add_up(tmp_path, name):
    run = trace(tmp_path / "run.h5", BY_NAME[name], before=2)
    methods = ("tracin", "ideal", "tracincp", "tracin-sgd")
    whole = replayed(run, methods=methods)
    found = [replayed(run, methods=methods, parameters=block) for block in BLOCKS]
    for method, scores in whole.scores.items():
        split = sum(part.scores[method] for part in found)
        assert np.abs(split - scores).max() <= 1e-12 * np.abs(scores).max()
    kappa = rules.clip_factors(run, None)
    for part, block in zip(found, (["0.weight", "0.bias"], BLOCKS[1]), strict=True):
        assert part.attributes["parameters_chosen"] == " ".join(sorted(block))
        scores, _, terms = expected(run, kappa, nodes=0, names=block)
        assert np.abs(part.scores["tracin"] - scores).max() <= 1e-10
        for term in ("data", "regulariser", "history"):
            assert np.abs(part.terms["tracin"][term] - terms[term]).max() <= 1e-12
        for terms in part.terms.values():
            explained = sum(v for k, v in terms.items() if k != "measured")
            assert np.allclose(explained, terms["measured"], atol=1e-13)
            assert list(terms)[3] == "elsewhere"
    path = tmp_path / "block.h5"
    found[0].save(path)
    assert (Influence.load(path).terms["ideal"]["elsewhere"] != 0).any()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("head.*", "no parameter matches 'head.*'; the model has 0.weight, 0.bias"),
        ([], "at least one, or None for all; found []"),
    ],
)
def test_patterns_that_match_nothing(tmp_path, patterns, message):
    run = trace(tmp_path / "run.h5", BY_NAME["sgd"], steps=2)
    with pytest.raises(InputError, match=re.escape(message)):
        replayed(run, parameters=patterns)


def test_train_ids_are_columns(tmp_path):
    run = trace(tmp_path / "run.h5", BY_NAME["nesterov"])
    whole, some = replayed(run), replayed(run, train_ids=[7, 2])
    assert np.array_equal(some.scores["tracin"], whole.scores["tracin"][:, [7, 2]])
    assert np.array_equal(some.terms["tracin"]["data"], whole.terms["tracin"]["data"])


def quartic(model):
    """A smooth penalty."""
    return 0.05 * sum(p.pow(4).sum() for p in model.parameters())


def margin(model, batch):
    """A metric that is no loss: the logit of the class less the mean of all."""
    logits = model(batch[0])
    return logits.gather(1, batch[1][:, None])[:, 0] - logits.mean(1)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "adam-maximize", "rmsprop-momentum"])
def test_penalty_and_measure(tmp_path, name):
    parts = {"penalty": quartic, "measure": margin}
    run = trace(tmp_path / "run.h5", BY_NAME[name], clip=0.3, accumulate=True, parts=parts)
    found = compare(run, rules.clip_factors(run, 0.3))
    assert np.abs(found.terms["tracin"]["regulariser"]).min() > 0


@pytest.mark.parametrize(
    "kind",
    [O.Rprop, lambda p, lr: O.LBFGS(p, lr=lr, max_iter=3)],
    ids=["Rprop", "LBFGS"],
)
def test_the_papers_formula_needs_no_rule(tmp_path, kind):
    task, path = rules.task(), tmp_path / "run.h5"
    model = task.model()
    with TracingOptimizer(kind(model.parameters(), lr=0.01), model, path) as optimizer:
        for t in range(3):
            ids = [t, t + 1, t + 1]
            batch = task.collate([task.train[i] for i in ids])

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = task.loss(model, batch).mean()
                loss.backward()
                return loss

            optimizer.step(closure, batch_ids=ids)
    run = Replay(path, task=task)
    found = run.influence([0, 1], methods=("tracin-sgd", "tracincp"), progress=False)
    expected = np.zeros((2, 12))

    def gradient(example):
        loss = task.loss(model, task.collate([example])).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([g.flatten() for g in grads])

    with open_log(path) as log:
        for t in range(3):
            model.load_state_dict(log.parameters(t))
            for i in [t, t + 1, t + 1]:
                g = gradient(task.train[i])
                for j in range(2):
                    expected[j, i] += 0.01 / 3 * float(g @ gradient(task.test[j]))
    assert np.abs(found.scores["tracin-sgd"] - expected).max() <= 1e-12 * np.abs(expected).max()
    measured = found.completeness["tracin-sgd"]["measured"]
    assert np.allclose(measured, run.drops([0, 1], progress=False).sum(0), atol=1e-14)
    if kind is O.Rprop:  # whose steps are split
        return
    with pytest.raises(UnsupportedRuleError, match="tracincp, tracin-sgd or the measured drops"):
        run.influence([0, 1], methods=("tracin-sgd", "tracin"), progress=False)
