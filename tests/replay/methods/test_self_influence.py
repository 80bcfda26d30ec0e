"""Self-influence against its definition, and what its command prints."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from replay import Replay, SelfInfluence
from tests.helpers import reference, rules
from tests.helpers.cases import CASES
from tests.helpers.rules import O, trace
from tracer import TracingOptimizer, open_log
from tracer.errors import InputError, OutputExistsError

RULES = [r for r in rules.RULES if r.name in ("sgd", "dampened", "nesterov", "adamw-amsgrad",
         "rmsprop-momentum", "rmsprop-centered", "adagrad", "heavy-ball-maximize")]  # fmt: skip


def first_coefficient(run, t, name, numbers, *, fresh):
    """Return K_{t,t} of one parameter, straight from the rule."""
    kind, lr = run.rule.kind, numbers["lr"]
    if kind is O.SGD:
        mu = numbers["momentum"]
        gain = 1.0 if fresh else 1 - numbers["dampening"]
        return lr * (1 + mu * gain if numbers["nesterov"] else gain if mu else 1)
    had = run.had[t][name]
    size, k = 1 / had.divisor, had.numbers.get("step")
    if kind is O.AdamW:
        b1 = numbers["betas.0"]
        return lr * (1 - b1) / (1 - b1**k) * size
    if kind is O.Adagrad:
        return lr / (1 + (k - 1) * numbers["lr_decay"]) * size
    return lr * size


def losses(task, log, t, at):
    """Return the losses of step t's batches at other parameters."""
    found = []
    for micro in log.step(t).micro_batches:
        model = task.model().double()
        model.load_state_dict({**log.parameters(at), **log.buffers(t)}, strict=False)
        if micro.random_state is not None:
            torch.set_rng_state(micro.random_state.cpu)
        batch = reference.double(task.collate([task.train[i] for i in micro.ids]))
        found.append(task.loss(model.train(), batch).detach())
    return torch.cat(found)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_self_influence_equals_its_definition(tmp_path, rule):
    run = trace(tmp_path / "run.h5", rule, clip=0.3, scheduled=True, accumulate=True)
    found = Replay(run.path, task=run.task).self_influence(by="step", progress=False)
    kappa = rules.clip_factors(run, 0.3)
    own, drops, loss, visits = (np.zeros((rules.TRAIN, 6)) for _ in range(4))
    with open_log(run.path) as log:
        for t in range(len(log)):
            step = log.step(t)
            numbers = step.groups[0].hyperparameters
            sign = -1 if numbers["maximize"] else 1
            weights = torch.cat([m.coefficients for m in step.micro_batches])
            rows = reference.train_gradients(run.task, log, t)
            before = losses(run.task, log, t, t)
            change = before - losses(run.task, log, t, t + 1)
            for i, z in enumerate(step.batch_ids):
                for n, g in rows[i].items():
                    k = first_coefficient(run, t, n, numbers, fresh=t == 0)
                    product = sign * kappa[t][n] * (k * g * g).sum() / weights[i]
                    own[z, t] += product.item()
                drops[z, t] += change[i].item()
                loss[z, t] += before[i].item()
                visits[z, t] += 1
    parts, mean = found.by_period, loss.sum(1) / visits.sum(1)
    assert np.abs(parts["self"] - own).max() <= 1e-11 * np.abs(own).max()
    assert np.abs(parts["own_drop"] - drops).max() <= 1e-12
    assert np.allclose(found.scores["loss"], mean, rtol=1e-12, equal_nan=True)
    assert np.array_equal(np.isnan(parts["loss"]), visits == 0)
    assert np.allclose(np.nan_to_num(parts["loss"]) * visits, loss, rtol=1e-12)
    assert np.array_equal(found.visits_by_period, visits)
    assert np.array_equal(found.visits, visits.sum(1))
    for name in ("self", "own_drop"):
        assert np.array_equal(parts[name].sum(-1), found.scores[name])


def test_examples_without_weight_have_no_influence(tmp_path):
    """Gradients are those of ``c_i ℓ_i``, from which ``g_i`` is not known where ``c_i`` is 0."""
    (case,) = [case for case in CASES if case.name == "mlp"]
    task, weights = case.task(), {0: 0.0, 1: 0.25, 2: 0.75}
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        c = torch.tensor(list(weights.values()), dtype=torch.float64)
        losses = task.loss(model, task.collate([task.train[i] for i in weights]))
        (c * losses).sum().backward()
        optimizer.observe(list(weights), weights=c)
        optimizer.step()
    found = Replay(tmp_path / "run.h5", task=task).self_influence(progress=False)
    with open_log(tmp_path / "run.h5") as log:
        rows = reference.train_gradients(task, log, 0)
    norms = [sum(float(g.square().sum()) for g in row.values()) for row in rows]
    expected = [0.3 * square / c if c else 0.0 for square, c in zip(norms, c, strict=True)]
    assert np.allclose(found.scores["self"][:3], expected, rtol=1e-11)
    assert found.scores["own_drop"][0] != 0
    assert found.visits[:4].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("name", ["convolutional-groupnorm", "transformer-tied", "mlp-id-twice",
                                  "batchnorm-dropout-accumulation"])  # fmt: skip
def test_plain_sgd_is_the_squared_norm(tmp_path, name):
    (case,) = [case for case in CASES if case.name == name]
    task = case.trace(tmp_path / "run.h5")
    found = Replay(tmp_path / "run.h5", task=task).self_influence(progress=False)
    expected = dict.fromkeys(task.train, 0.0)
    drops = dict.fromkeys(task.train, 0.0)
    with open_log(tmp_path / "run.h5") as log:
        for t in range(len(log)):
            step = log.step(t)
            (rate,) = step.learning_rate
            weights = torch.cat([m.coefficients for m in step.micro_batches])
            rows = reference.train_gradients(task, log, t)
            change = losses(task, log, t, t) - losses(task, log, t, t + 1)
            for z, g, c, drop in zip(step.batch_ids, rows, weights, change, strict=True):
                square = sum(float(v.square().sum()) for v in g.values())
                expected[z] += rate * square / float(c)
                drops[z] += float(drop)
    ours = dict(zip(found.train_ids, found.scores["self"], strict=True))
    assert all(np.isclose(ours[z], expected[z], rtol=1e-10, atol=0) for z in expected)
    assert np.allclose(found.scores["own_drop"], list(drops.values()), rtol=1e-9, atol=1e-12)


def test_choices_and_saving(tmp_path):
    run = trace(tmp_path / "run.h5", rules.RULES[2])
    replay = Replay(run.path, task=run.task)
    whole = replay.self_influence(progress=False)
    parts = [replay.self_influence(steps=w, progress=False) for w in ("0:2", "2:6")]
    assert np.allclose(sum(p.scores["self"] for p in parts), whole.scores["self"], rtol=1e-12)
    some = replay.self_influence(train_ids=[5, 1], progress=False)
    assert np.array_equal(some.scores["self"], whole.scores["self"][[5, 1]])
    ids, scores = whole.top(3)
    assert ids == np.argsort(-whole.scores["self"])[:3].tolist()
    assert (np.diff(scores) <= 0).all()
    with pytest.raises(InputError, match='"own_drop" or "loss", found .other.'):
        whole.top(by="other")
    whole.save(tmp_path / "self.h5")
    with pytest.raises(OutputExistsError, match="self.h5 exists"):
        whole.save(tmp_path / "self.h5")
    with h5py.File(tmp_path / "self.h5") as file:
        assert np.array_equal(file["own_drop"][:], whole.scores["own_drop"])
        assert file["self"].dims[0][0].name == "/train"


@pytest.mark.parametrize("name", ["mlp-two-groups-decay", "batchnorm-dropout-accumulation"])
def test_the_checkpoint_heuristic_beside_it_is_its_diagonal(tmp_path, name):
    (case,) = [case for case in CASES if case.name == name]
    task = case.trace(tmp_path / "run.h5")
    states = [1, 2, len(case.batches)]
    run = Replay(tmp_path / "run.h5", task=task)
    found = run.self_influence(checkpoints=states, by="step", progress=False)
    pairs = Replay(tmp_path / "run.h5", task=replace(task, test=task.train))
    ids = list(task.train)
    for state in states:
        one = pairs.influence(ids, methods="tracincp", checkpoints=[state], progress=False)
        diagonal = np.diag(one.scores["tracincp"])
        assert np.allclose(found.by_period["tracincp"][:, state - 1], diagonal, rtol=1e-11)
    whole = pairs.influence(ids, methods="tracincp", checkpoints=states, progress=False)
    assert np.allclose(found.scores["tracincp"], np.diag(whole.scores["tracincp"]), rtol=1e-11)
    assert list(found.scores) == ["self", "own_drop", "loss", "tracincp"]
    found.save(tmp_path / "self.h5")
    again = SelfInfluence.load(tmp_path / "self.h5")
    assert again.periods == found.periods
    for table in ("scores", "by_period"):
        for score, values in getattr(found, table).items():
            assert np.array_equal(getattr(again, table)[score], values, equal_nan=True)
    assert np.array_equal(again.visits_by_period, found.visits_by_period)


def test_the_result_says_whose_loss_it_is_about(tmp_path):
    run = trace(tmp_path / "run.h5", rules.BY_NAME["sgd"], steps=2)
    replay = Replay(run.path, task=run.task)
    own = replay.self_influence(progress=False).attributes
    other = replay.influence([0], methods=("tracin",), progress=False).attributes
    assert own["sign"] == "positive = proponent: lowered the example's own training loss"
    assert other["sign"] == "positive = proponent: lowered the test loss"
    assert own["unit"] == other["unit"] == "as task.loss returns it; a cross-entropy is in nats"
    measured = Replay(run.path, task=replace(run.task, measure=run.task.loss))
    facts = measured.influence([0], methods="tracin", progress=False).attributes
    assert facts["sign"] == "positive = proponent: lowered the measured test value"
    assert facts["unit"].startswith("as task.measure returns it")
