"""Every update rule's split against the forward-buffer reference, and the small print."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import reference
import rules
import torch
from cases import CASES, Case, l1
from rules import RULES, TEST, expected, trace
from torch import nn

from replay import Influence, Replay, drive
from replay.optimizer_state import StoredStates
from tracer import TracingOptimizer, open_log
from tracer.errors import InputError, LogError, MismatchError, UnsupportedRuleError
from tracer.reader import RunLog

TEST_IDS = list(range(TEST))


def compare(run, kappa, tmp_path=None, *, window=None, memory="2GiB", methods=("tracin", "ideal")):
    """Replay a run and hold every number against the reference."""
    found = Replay(run.path, task=run.task, memory=memory).influence(
        TEST_IDS, methods=methods, ideal_tolerance=1e-12, steps=window, progress=False
    )
    for method in methods:
        nodes = 24 if method == "ideal" else 0
        scores, scale, terms = expected(run, kappa, nodes=nodes, window=window)
        # the reference integrates ideal with 24 nodes, the replay with up to 8
        share = 1e-8 if method == "ideal" else 1e-10
        assert (np.abs(found.scores[method] - scores) <= share * np.maximum(scale, 1e-3)).all()
        ours = found.terms[method]
        size = 1e-3 + np.abs(terms["data"]).max()
        for term in ("data", "regulariser", "history", "measured"):
            assert np.abs(ours[term] - terms[term]).max() <= share * size, (method, term)
        split = ours["data"] + ours["regulariser"] + ours["history"]
        assert np.abs(ours["rounding"]).max() <= 1e-12 * size
        if method == "tracin":
            assert np.abs(split - terms["slope"]).max() <= 1e-12 * size
        whole = split + ours["buffers"] + ours["rounding"] + ours["residual"]
        assert np.abs(whole - ours["measured"]).max() <= 1e-12 * size
        assert np.allclose(found.scores[method].sum(1), ours["data"].sum(0), rtol=1e-10, atol=1e-13)
        if method == "ideal":
            assert np.abs(ours["residual"]).max() <= 1e-10 * (size + scale.max())
            assert np.abs(found.drops["ideal"] - terms["measured"]).max() <= 1e-10 * size
    return found


@pytest.mark.parametrize("before", [0, 4], ids=["start", "mid-run"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["", "accumulate"])
@pytest.mark.parametrize("clip", [None, 0.3], ids=["", "clip"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_equals_the_reference(tmp_path, rule, scheduled, clip, accumulate, before):
    run = trace(
        tmp_path / "run.h5", rule, scheduled=scheduled, clip=clip, accumulate=accumulate,
        before=before, steps=3,
    )  # fmt: skip
    compare(run, rules.clip_factors(run, clip))


BY_NAME = {rule.name: rule for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_without_ideal_and_in_small_blocks(tmp_path, monkeypatch, rule):
    # tracin alone finds its terms while credits are found; nothing depends on where a cut is
    monkeypatch.setattr(drive, "_BLOCK", 4)
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


O = torch.optim  # noqa: E741


def replayed(run, **options):
    """Return the influence of a run."""
    memory = options.pop("memory", "2GiB")
    return Replay(run.path, task=run.task, memory=memory).influence(
        list(range(TEST)), progress=False, **{"methods": ("tracin",), **options}
    )


def without(skipped):
    """Return a hook that takes gradients away: parameters by step."""

    def hook(t, _optimizer, model):
        for name, parameter in model.named_parameters():
            if name in skipped.get(t, ()):
                parameter.grad = None

    return hook


SKIPPED = {0: ["2.weight"], 2: ["2.weight", "0.bias"], 3: ["0.weight"]}


@pytest.mark.parametrize(
    "name", ["sgd", "dampened", "nesterov", "adam-decay", "adamw-amsgrad", "rmsprop-momentum",
             "rmsprop-centered", "adagrad"],
)  # fmt: skip
def test_parameters_without_gradient_in_some_steps(tmp_path, name):
    # k of Adam is each parameter's own, and so is the first, undampened buffer
    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=without(SKIPPED))
    compare(run, rules.clip_factors(run, None))
    with open_log(run.path) as log:
        assert log.step(2).without_gradient == {"2.weight", "0.bias"}


@pytest.mark.parametrize("name", ["nesterov", "adam-decay"])
def test_a_step_in_which_no_parameter_has_a_gradient(tmp_path, name):
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=without({0: names, 2: names}),
                parts={"penalty": l1}, steps=4)  # fmt: skip
    compare(run, rules.clip_factors(run, None), memory=20_000, methods=("tracin",))


@pytest.mark.parametrize(
    ("name", "flag"), [("adamw-amsgrad", "amsgrad"), ("rmsprop-centered", "centered")]
)
def test_second_moments_that_rest_for_some_steps(tmp_path, name, flag):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0][flag] = t not in (1, 2)

    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle, state_every=2, steps=4)
    compare(run, rules.clip_factors(run, None), methods=("tracin",))


@pytest.mark.parametrize("name", ["dampened", "nesterov"])
@pytest.mark.parametrize("momenta", [(0, 0, 0.9, 0.8, 0, 0.5), (0.9, 0, 0, 0.9, 0.9, 0)], ids=str)
def test_momentum_that_passes_through_zero(tmp_path, name, momenta):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0]["momentum"] = momenta[t]

    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle)
    compare(run, rules.clip_factors(run, None))


def test_betas_that_move(tmp_path):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0]["betas"] = (0.95 - 0.1 * t, 0.99)

    run = trace(tmp_path / "run.h5", BY_NAME["adamw"], settle=settle)
    compare(run, rules.clip_factors(run, None))


@pytest.mark.parametrize("name", ["heavy-ball", "adam-decay", "rmsprop-momentum"])
def test_steps_with_learning_rate_zero(tmp_path, name):
    def settle(t, optimizer, _model):
        optimizer.param_groups[0]["lr"] = 0.0 if t in (1, 2) else 0.01

    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle)
    compare(run, rules.clip_factors(run, None))


def by_kind(model):
    """Return a group of weights and one of biases with settings of its own."""
    named = list(model.named_parameters())
    weights = [p for n, p in named if "weight" in n]
    biases = [p for n, p in named if "weight" not in n]
    return [{"params": weights}, {"params": biases, "lr": 0.05, "weight_decay": 0.3}]


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "rmsprop-momentum"])
def test_groups_clipped_apart(tmp_path, name):
    def clip(t, optimizer, _model):
        for limit, group in zip((0.2, 0.05), optimizer.param_groups, strict=True):
            if t != 1:
                nn.utils.clip_grad_norm_(group["params"], limit)

    run = trace(tmp_path / "run.h5", BY_NAME[name], groups=by_kind, hook=clip)
    factors = []
    with open_log(run.path) as log:
        for t in range(len(log)):
            rows = reference.train_gradients(run.task, log, t)
            found = {}
            for limit, kind in ((0.2, "weight"), (0.05, "bias")):
                names = [n for n in rows[0] if kind in n]
                norm = sum(float(sum(r[n] for r in rows).square().sum()) for n in names) ** 0.5
                factor = 1.0 if t == 1 else min(1.0, limit / (norm + 1e-6))
                found.update(dict.fromkeys(names, factor))
            factors.append(found)
    found = compare(run, factors)
    assert found.attributes["steps_scaled_outside"] == 5


@pytest.mark.parametrize("name", ["heavy-ball", "adam"])
def test_value_clipping_is_an_error_that_names_the_step(tmp_path, name):
    def clip(t, _optimizer, model):
        if t == 2:
            nn.utils.clip_grad_value_(model.parameters(), 0.05)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=clip)
    said = r"step 2 of .*gradient of '.*' as applied had the norm [\d.e-]+, the .*value clipping"
    with pytest.raises(MismatchError, match=said):
        replayed(run)
    found = replayed(run, allow_mismatch=True)
    rounding = np.abs(found.terms["tracin"]["rounding"]).max(1)
    assert rounding[2] > 1e-6 > 1e-12 > rounding[:2].max()


@pytest.mark.parametrize("name", ["heavy-ball", "adam"])
def test_gradients_changed_without_their_norm_are_an_error(tmp_path, name):
    def turn(t, _optimizer, model):
        for parameter in model.parameters():
            parameter.grad *= 1 - 2 * (t == 2)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=turn)
    with pytest.raises(
        MismatchError, match=r"step 2 of .*differ by [\d.e-]+ of the gradient's norm"
    ):
        replayed(run)


def test_optimizer_state_cleared_in_the_middle_is_an_error(tmp_path):
    def clear(t, optimizer, _model):
        if t == 2:
            optimizer.state.clear()

    run = trace(tmp_path / "run.h5", BY_NAME["heavy-ball"], settle=clear, steps=3)
    with pytest.raises(MismatchError, match=r"step 2 of .*at the optimizer's state \(loaded or cl"):
        replayed(run)


def test_gradients_made_larger_are_an_error(tmp_path):
    def double(t, _optimizer, model):
        for parameter in model.parameters():
            parameter.grad *= 1 + (t == 1)

    run = trace(tmp_path / "run.h5", BY_NAME["adam"], hook=double)
    with pytest.raises(MismatchError, match="step 1 of .*as applied had the norm .* never larger"):
        replayed(run)


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


def test_optimizer_state_loaded_in_the_middle_is_an_error(tmp_path):
    def settle(t, optimizer, model):
        if t == 3:
            for parameter in model.parameters():
                optimizer.state[parameter]["exp_avg_sq"] *= 4

    run = trace(tmp_path / "run.h5", BY_NAME["adam"], settle=settle)
    with pytest.raises(MismatchError, match="step 3 of .* does not reproduce"):
        replayed(run)


def test_log_without_the_state_before_the_window(tmp_path, monkeypatch):
    run = trace(tmp_path / "run.h5", BY_NAME["adam"], state_every=4)
    monkeypatch.setattr(RunLog, "states", lambda _: [4])
    with pytest.raises(LogError, match="holds no full state before step 0"):
        replayed(run)
    assert replayed(run, steps=(4, 6)).steps == [4, 5]


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
    [("head.*", "no parameter matches 'head.*'; the model has 0.weight, 0.bias"), ([], "is empty")],
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


@pytest.mark.parametrize("name", ["heavy-ball", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_scaled_gradients_of_amp(tmp_path, name, clip):
    # the scaler's factor is gone when the optimizer steps, and a skipped step is no step
    task, rule = rules.task(), BY_NAME[name]
    model = task.model()
    inner = rule.kind(model.parameters(), **rule.options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    with TracingOptimizer(inner, model, tmp_path / "run.h5") as optimizer:
        for t in range(5):
            ids = [t, t + 3, t + 1]
            optimizer.zero_grad()
            loss = task.loss(model, task.collate([task.train[i] for i in ids])).mean()
            scaler.scale(loss * (torch.inf if t == 2 else 1)).backward()
            if clip:
                scaler.unscale_(optimizer)
                optimizer.clip_grad_norm_(clip)
            scaler.step(optimizer, batch_ids=ids)
            scaler.update()
    found = Replay(tmp_path / "run.h5", task=task).influence([0], progress=False)
    assert len(found.steps) == 4
    for method in ("tracin", "ideal"):
        terms = found.terms[method]
        assert np.abs(terms["rounding"]).max() <= 1e-12
        assert found.attributes["steps_scaled_outside"] == 0
        assert np.isclose(found.scores[method].sum(), terms["data"].sum(), rtol=1e-10)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_weights_of_unequal_micro_batches(tmp_path, name):
    task, rule = rules.task(), BY_NAME[name]
    model = task.model()
    inner = rule.kind(model.parameters(), **rule.options)
    weights = torch.tensor([0.5, 0.1, 0.0, 0.3, 0.7], dtype=torch.float64)
    path = tmp_path / "run.h5"
    run = rules.Run(rule, task, path)
    with TracingOptimizer(inner, model, path, reduction="sum") as optimizer:
        for t in range(4):
            ids = [t, t + 3, t + 1, t, t + 5]
            optimizer.zero_grad()
            for part in (slice(0, 2), slice(2, 5)):
                losses = task.loss(model, task.collate([task.train[i] for i in ids[part]]))
                (losses * weights[part]).sum().backward()
                optimizer.observe(ids[part], weights=weights[part])
            optimizer.step()
            names = {id(p): n for n, p in model.named_parameters()}
            state = {names[id(p)]: s for p, s in inner.state.items()}
            group = inner.param_groups[0]
            run.denominators.append({n: rules.denominator(s, group) for n, s in state.items()})
            run.counts.append({n: float(s.get("step", 0)) for n, s in state.items()})
    compare(run, rules.clip_factors(run, None))


def test_sparse_gradients_refuse_by_name(tmp_path):
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.top = nn.Embedding(12, 4, sparse=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.top(self.table(x))

    task = Case("sparse", Sparse).task()
    data = {k: (torch.tensor(k), torch.tensor(k % 3)) for k in range(12)}
    task = type(task)(lambda: Sparse().double(), task.loss, data, data)
    model = task.model()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(inner, model, tmp_path / "run.h5") as optimizer:
        task.loss(model, task.collate([data[k] for k in (1, 4)])).mean().backward()
        optimizer.step(batch_ids=[1, 4])
    run = Replay(tmp_path / "run.h5", task=task)
    with pytest.raises(
        UnsupportedRuleError, match="step 0: the gradient of 'table.weight' is spar"
    ):
        run.influence([0], methods=("tracin",), progress=False)
    assert np.isfinite(run.drops([0, 2], progress=False)).all()
    found = run.influence([0], methods=("tracincp",), progress=False)
    assert np.isfinite(found.scores["tracincp"]).all()


def by_value(model):
    nn.utils.clip_grad_value_(model.parameters(), 0.02)


def each_alone(model):
    for parameter in model.parameters():
        nn.utils.clip_grad_norm_(parameter, 0.02)


@pytest.mark.parametrize("changed", [by_value, each_alone])
@pytest.mark.parametrize("name", ["nesterov", "adam", "adamw", "rmsprop", "adagrad"])
@pytest.mark.parametrize("at", [0, 2])
def test_gradients_changed_by_no_factor_are_an_error(tmp_path, name, changed, at):
    """Also where the update hides it: Adam's first step is the gradient's sign."""

    def hook(t, _optimizer, model):
        if t == at:
            changed(model)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=hook, steps=at + 1)
    with pytest.raises(MismatchError, match=rf"step {at} of .*: the gradient of '.*' as"):
        replayed(run)
    replayed(run, allow_mismatch=True)


def test_so_they_are_however_little(tmp_path):
    """Beyond rounding: a millionth of one parameter's gradient, in Adam's first step."""

    def shrink(t, _optimizer, model):
        model[0].weight.grad.mul_(1 - 1e-6)

    run = trace(tmp_path / "run.h5", BY_NAME["adam"], hook=shrink, steps=1)
    with pytest.raises(MismatchError, match="step 0 of .*: the gradient of '.*' as applied had"):
        replayed(run)


@pytest.mark.parametrize("name", ["heavy-ball", "adam"])
def test_so_they_are_at_a_step_with_learning_rate_0(tmp_path, name):
    def hook(t, optimizer, model):
        optimizer.param_groups[0]["lr"] = 0.0 if t == 1 else 0.01
        if t == 1:
            by_value(model)

    run = trace(tmp_path / "run.h5", BY_NAME[name], hook=hook, steps=2)
    with pytest.raises(MismatchError, match="step 1 of .*: the gradient of '.*' as applied had"):
        replayed(run)


@pytest.mark.parametrize("last", [True, False], ids=["at the end", "on the way"])
@pytest.mark.parametrize(
    ("name", "key"), [("adamw", "exp_avg_sq"), ("nesterov", "momentum_buffer"), ("adam", "exp_avg")]
)
def test_stored_states_are_compared(tmp_path, name, key, last):
    """A state in the log that steps with learning rate 0 hide."""

    def settle(t, optimizer, model):
        optimizer.param_groups[0]["lr"] = 0.0
        if t == 2:
            optimizer.state[next(model.parameters())][key].mul_(1.5)

    every = 100 if last else 3  # the state at the end is written by close()
    run = trace(tmp_path / "run.h5", BY_NAME[name], settle=settle, steps=5, state_every=every)
    with pytest.raises(MismatchError, match=f"step {5 if last else 3} .*recomputed {key} of '0.w"):
        replayed(run)
    with pytest.raises(MismatchError, match=f"recomputed {key} of '0.weight' differs"):
        Replay(run.path, task=run.task).verify(progress=False)
    replayed(run, allow_mismatch=True)


def test_second_moments_are_taken_from_the_log(tmp_path, monkeypatch):
    """From each full state on, so that rounding does not grow along the run."""
    run = trace(tmp_path / "run.h5", BY_NAME["adam"], steps=6, state_every=3)
    seen = {}
    whole = StoredStates.renewed

    def spy(self, memory, t, checks):
        found = whole(self, memory, t, checks)
        seen[t] = found.moments.get("0.weight", {}).get("exp_avg_sq")
        return found

    monkeypatch.setattr(StoredStates, "renewed", spy)
    replayed(run)
    with open_log(run.path) as log:
        stored = log.state(3)["optimizer"]["state"]
        first = next(iter(stored.values()))
        assert torch.equal(seen[3], first["exp_avg_sq"])
    assert {0, 3, 6} <= seen.keys()


@pytest.mark.parametrize(
    "kind",
    [O.NAdam, O.Adamax, O.Rprop, lambda p, lr: O.LBFGS(p, lr=lr, max_iter=3)],
    ids=["NAdam", "Adamax", "Rprop", "LBFGS"],
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
    with pytest.raises(UnsupportedRuleError, match="tracincp, tracin-sgd and the measured drops"):
        run.influence([0, 1], methods=("tracin-sgd", "tracin"), progress=False)
