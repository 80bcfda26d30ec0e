"""Unrolling by segments, windows and blocks, and what it refuses by name."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from replay import Influence, Replay
from tests.helpers import rules
from tests.helpers.alternatives import Loop
from tests.helpers.cases import mlp
from tests.helpers.rerun import RUNS, SGD, TRAIN, Rerun
from tests.helpers.rules import BY_NAME
from tests.replay.methods.test_unrolled import ONE, unrolled
from tracer import TracingOptimizer, open_log
from tracer.errors import GradientError, UnsupportedRuleError
from tracer.rules import table

BY = {run.name: run for run in RUNS}


@pytest.mark.parametrize("name", ["adam-decay-clip", "heavy-ball-batchnorm", "sgd-mlp"])
def test_small_memory_and_sparse_logs(tmp_path, name):
    run = BY[name]
    run.trained(ONE, tmp_path / "run.h5")
    run.trained(ONE, tmp_path / "sparse.h5", snapshot_every=3)
    expected = unrolled(run, tmp_path / "run.h5").scores["unrolled"]
    for path, memory in (("run.h5", 40_000), ("run.h5", 1), ("sparse.h5", "2GiB")):
        found = unrolled(run, tmp_path / path, memory=memory).scores["unrolled"]
        assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


def test_windows_and_blocks(tmp_path):
    run, path = BY["adam-decay-clip"], tmp_path / "run.h5"
    run.trained(ONE, path)
    whole = unrolled(run, path)
    with open_log(path) as log:
        early = {z for t in (0, 1) for z in log.batch_ids(t)}
    late = [z for z in range(TRAIN) if z not in early]
    window = unrolled(run, path, steps=(2, 4)).scores["unrolled"]
    assert late
    assert np.abs(window[:, late]).max() > 0
    expected = whole.scores["unrolled"][:, late]  # there the optimizer is found step by step
    assert np.abs(window[:, late] - expected).max() <= 1e-13
    blocks = [unrolled(run, path, parameters=some) for some in (["0.*"], ["2.*", "4.*"])]
    total = sum(block.scores["unrolled"] for block in blocks)
    assert np.allclose(total, whole.scores["unrolled"], rtol=0, atol=1e-14)


def test_a_result_says_what_it_is(tmp_path):
    run, path = BY["sgd-mlp"], tmp_path / "run.h5"
    run.trained(ONE, path)
    both = unrolled(run, path, methods=("unrolled", "tracin"))
    assert list(both.terms) == list(both.drops) == ["tracin"]
    claim = "unrolled: the first derivative of the counterfactual run; its scores do not add up"
    assert claim in str(both.attributes["claims"])
    assert claim in repr(both)
    alone = unrolled(run, path)
    assert alone.completeness == alone.drops == {}
    alone.save(tmp_path / "alone.h5")
    loaded = Influence.load(tmp_path / "alone.h5")
    assert np.array_equal(loaded.scores["unrolled"], both.scores["unrolled"])


class Noise(nn.Module):
    """Adds noise drawn in a dtype, which decides the numbers; None is its input's."""

    def __init__(self, dtype=None):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        drawn = torch.randn(x.shape, dtype=self.dtype or x.dtype).to(x)
        return x + 0.3 * drawn if self.training else x


def noisy(dtype=None):
    return nn.Sequential(
        nn.Linear(4, 6), Noise(dtype), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
    )


def in_float32(build, path, between=lambda model: None):
    """Train a model in float32 for five steps; return the run."""
    task = replace(BY["sgd-mlp"], build=build).task()
    cut = replace(
        task, model=lambda: task.model().float(), train=halves(task.train), test=halves(task.test)
    )
    model = cut.model()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(5):
            ids = [t, t + 1, t + 1]
            optimizer.zero_grad()
            cut.loss(model, cut.collate([cut.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
            between(model)
    return type("Run", (), {"task": lambda _: cut})()


def halves(examples):
    return [(x.float(), y) for x, y in examples]


def near(run, path):
    """Return scores as they are in float32, which are near those in float64."""
    found, expected = (
        unrolled(run, path, dtype=dtype).scores["unrolled"] for dtype in (None, "float64")
    )
    assert 1e-9 < np.abs(found - expected).max() / np.abs(expected).max() < 1e-4
    return found


def test_float32(tmp_path):
    near(in_float32(mlp, tmp_path / "run.h5"), tmp_path / "run.h5")


def test_noise_drawn_in_the_dtype_of_its_input(tmp_path):
    """The proof in float64 draws other numbers; what is proved are derivatives, not the run."""
    paths = tmp_path / "own.h5", tmp_path / "always.h5"
    runs = []
    for dtype, path in zip((None, torch.float32), paths, strict=True):
        torch.manual_seed(3)
        runs.append(in_float32(lambda dtype=dtype: noisy(dtype), path))
    expected = near(runs[1], paths[1])
    assert np.array_equal(unrolled(runs[0], paths[0]).scores["unrolled"], expected)


def test_statistics_that_the_loop_moved_between_steps(tmp_path):
    def look(model):
        model(torch.ones(3, 4))  # in train mode

    run = in_float32(lambda: noisy(torch.float32), tmp_path / "run.h5", look)
    said = (
        r"step 4: the run's buffer '2.running_mean' after .*\n  1\. If .* without model\.eval\(\)"
    )
    with pytest.raises(GradientError, match=said):
        unrolled(run, tmp_path / "run.h5")


class Squares(torch.autograd.Function):
    """Squares, with a backward function that says that it works once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class Failing(Squares):
    """The same, with a backward function that fails where it is to be differentiated."""

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("derivative of squares_backward is not implemented")
        return 2 * gradient * ctx.saved_tensors[0]


class Layer(nn.Module):
    """One layer through a function."""

    def __init__(self, function):
        super().__init__()
        self.inside, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.function(self.inside(x))


class Average(nn.Module):
    """Takes off a moving average."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.average.lerp_(x.detach().mean(0), 0.1)
        return x - self.average


def below(layer):
    return lambda: nn.Sequential(nn.Linear(4, 4), layer(), nn.Tanh(), nn.Linear(4, 3))


REFUSED = {
    "named": (below(lambda: Layer(Failing.apply)), "step 3: layer '1' (Layer) cannot be diff"),
    "detach": (below(lambda: Layer(lambda x: x * x.detach())), "differences of its gradient. Some"),
    "once": (below(lambda: Layer(Squares.apply)), "has the custom functions SquaresBackward)"),
    "buffer": (below(Average), "step 3: the buffer '1.average' changes with the parameters"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_differentiated_is_named(tmp_path, build, message):
    run = Rerun("", SGD, build)
    run.trained(ONE, tmp_path / "run.h5")
    with pytest.raises(GradientError, match=re.escape(message)):
        unrolled(run, tmp_path / "run.h5")


def test_a_rule_that_is_not_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(table.KNOWN, "SGD")
    Loop(steps=2).train(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", Loop().task())
    said = r"made by SGD, whose update unrolled cannot differentiate; .*\n  1. Take c"
    with pytest.raises(UnsupportedRuleError, match=said):
        run.influence([0], methods=("unrolled",), progress=False)
    found = run.leave_one_out([0], [3, 4], progress=False)  # the remedy works
    assert np.isfinite(found.change).all()


@pytest.mark.parametrize("name", ["rprop", "adafactor"])  # signs; whole rows and columns
def test_a_rule_that_is_split_and_cannot_be_differentiated(tmp_path, name):
    run = rules.trace(tmp_path / "run.h5", BY_NAME[name], steps=2)
    said = rf"made by {run.rule.kind.__name__}, whose update unrolled cannot .* Adam, .*, NAdam"
    with pytest.raises(UnsupportedRuleError, match=said):
        unrolled(type("Run", (), {"task": lambda _: run.task})(), run.path)


def scaled(t, optimizer, model):
    for p in model.parameters():
        p.grad *= 0.377123


def clipped_otherwise(t, optimizer, model):
    optimizer.clip_grad_norm_(0.5, norm_type=1.0)


@pytest.mark.parametrize("hook", [scaled, clipped_otherwise])
def test_a_factor_that_is_no_euclidean_limit(tmp_path, hook):
    run = rules.trace(tmp_path / "run.h5", BY_NAME["sgd"], steps=2, hook=hook)
    with pytest.raises(UnsupportedRuleError, match="step 1: the gradient was multiplied by 0"):
        unrolled(type("Run", (), {"task": lambda _: run.task})(), run.path)


@pytest.mark.parametrize("name", ["adam-decay-clip", "heavy-ball-batchnorm"])
def test_it_is_the_derivative_of_counterfactual_runs(tmp_path, name):
    run, path, h = BY[name], tmp_path / "run.h5", 4e-4
    run.trained(ONE, path)
    scores = unrolled(run, path).scores["unrolled"]
    direction = np.random.default_rng(1).normal(size=TRAIN)
    factors = (1 + k * h * direction for k in (-2, -1, 1, 2))
    scales = [dict(enumerate(some.tolist())) for some in factors]
    replay = Replay(path, task=run.task())
    change = replay.counterfactual([0, 1], scale=scales, progress=False).change
    expected = -(change[0] - 8 * change[1] + 8 * change[2] - change[3]) / (12 * h)
    assert np.all(np.abs(scores @ direction - expected) <= 1e-6 * np.abs(expected))
