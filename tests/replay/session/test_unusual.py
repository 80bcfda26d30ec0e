"""What users do that most models and loops do not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim.optimizer import register_optimizer_step_pre_hook

from replay import Replay, Task
from tracer import TracingOptimizer, open_log
from tracer.errors import InputError, PrecisionWarning, TaskError, TracingError

DATA = [(x, k % 3) for k, x in enumerate(torch.randn(24, 4, generator=torch.manual_seed(0)))]
PLAIN = ("tracin", "ideal", "tracincp")


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0].to(next(model.parameters()))), batch[1], reduction="none")


def traced(path, build, loss=cross_entropy, rule=None, steps=4, **options):
    """Train a few steps; return the task."""
    torch.manual_seed(0)
    task = Task(build, loss, DATA, DATA[:4])
    model = build()
    inner = (rule or (lambda p: torch.optim.SGD(p, lr=0.1)))(model.parameters())
    with TracingOptimizer(inner, model, path, **options) as optimizer:
        for t in range(steps):
            ids = [(8 * t + k) % 24 for k in range(8)]
            optimizer.zero_grad()
            loss(model, task.collate([DATA[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    return task


def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize(
    "form", [torch.tensor, np.array, lambda ids: [torch.tensor(i) for i in ids], iter, np.int32]
)
def test_ids_may_be_tensors_or_arrays(tmp_path, form):
    run = Replay(tmp_path / "run.h5", traced(tmp_path / "run.h5", linear))
    form = (lambda ids: [np.int32(i) for i in ids]) if form is np.int32 else form
    expected = run.influence([2, 0], train_ids=[5, 1, 7], methods=PLAIN, progress=False)
    found = run.influence(form([2, 0]), train_ids=form([5, 1, 7]), methods=PLAIN, progress=False)
    assert (found.test_ids, found.train_ids) == ([2, 0], [5, 1, 7])
    assert all((found.scores[name] == expected.scores[name]).all() for name in PLAIN)
    assert (run.drops(form([2, 0]), progress=False) == run.drops([2, 0], progress=False)).all()
    own = run.self_influence(train_ids=form([5, 1, 7]), progress=False)
    assert own.visits.tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="expected a list of test IDs .*found 3"):
        run.influence(3, progress=False)


def steep(model, batch):
    """A penalty on the input's gradient."""
    x = batch[0].to(next(model.parameters())).requires_grad_()
    losses = F.cross_entropy(model(x), batch[1], reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return losses + 0.1 * slope.square().sum(1)


def steep_anyway(model, batch):
    with torch.enable_grad():
        return steep(model, batch)


@pytest.mark.parametrize("loss", [steep, steep_anyway])
def test_losses_that_differentiate_inside(tmp_path, loss):
    run = Replay(tmp_path / "run.h5", traced(tmp_path / "run.h5", linear, loss))
    found = run.influence([0, 1], methods=("tracin", "ideal"), progress=False)
    for name in ("tracin", "ideal"):
        terms = found.completeness[name]
        assert np.allclose(sum(terms.values()) - terms["measured"], terms["measured"], atol=1e-9)
        assert np.abs(terms["rounding"]).max() < 1e-6
    assert np.isfinite(run.self_influence(progress=False).scores["own_drop"]).all()


def normed():
    model = linear()
    nn.utils.weight_norm(model[0])
    model(torch.zeros(1, 4))  # now its weight is the result of an operation
    return model


def pruned():
    model = linear()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    model(torch.zeros(1, 4))
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("build", [normed, pruned])
def test_models_that_cannot_be_copied(tmp_path, build):
    run = Replay(tmp_path / "run.h5", traced(tmp_path / "run.h5", build))
    found = run.influence([0, 1], methods=("tracin",), progress=False)
    assert np.abs(found.terms["tracin"]["rounding"]).max() < 1e-6


def test_self_influence_of_a_bfloat16_model(tmp_path):
    task = traced(tmp_path / "run.h5", lambda: linear().bfloat16(), steps=60)
    own = Replay(tmp_path / "run.h5", task).self_influence(progress=False)
    assert np.isfinite(own.scores["own_drop"]).all()


def test_scores_that_are_rounding_are_said_to_be(tmp_path):
    """The gradient of a bias before a BatchNorm is zero, its rounding is divided by next to it."""

    def build():
        torch.manual_seed(1)
        layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
        return nn.Sequential(*layers)

    rule = lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-16)  # noqa: E731
    task = traced(tmp_path / "run.h5", build, rule=rule, steps=40)
    said = r"tracin scores of test example .*\n.*--dtype float64"
    with pytest.warns(PrecisionWarning, match=said):
        Replay(tmp_path / "run.h5", task).influence([0, 1], methods=("tracin",), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        task = traced(tmp_path / "other.h5", linear, rule=rule, steps=40)
        Replay(tmp_path / "other.h5", task).influence([0, 1], methods=("tracin",), progress=False)


def test_a_step_without_any_gradient(tmp_path):
    model = linear()
    task = Task(linear, cross_entropy, DATA, DATA[:4])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        for t in range(3):
            optimizer.zero_grad()
            losses = cross_entropy(model, task.collate([DATA[i] for i in (t, t + 1)]))
            if t != 1:
                losses.mean().backward()
            optimizer.step(batch_ids=[t, t + 1])
    found = Replay(tmp_path / "run.h5", task).influence([0], methods=("tracin",), progress=False)
    assert not found.terms["tracin"]["data"][1].any()
    assert found.terms["tracin"]["data"][[0, 2]].all()


@pytest.mark.parametrize(
    ("checkpoints", "meant"),
    [(np.int64(2), [2, 4]), (np.array([1, 3]), [1, 3]), (torch.tensor([1, 3]), [1, 3])],
)
def test_checkpoints_in_other_forms(tmp_path, checkpoints, meant):
    run = Replay(tmp_path / "run.h5", traced(tmp_path / "run.h5", linear))
    found, expected = (
        run.influence([0], methods=("tracincp",), checkpoints=some, progress=False)
        for some in (checkpoints, meant)
    )
    assert (found.scores["tracincp"] == expected.scores["tracincp"]).all()
    for wrong in (2.0, [2.5], None):
        with pytest.raises(InputError, match="checkpoints must be a number, a list of steps"):
            run.influence([0], methods=("tracincp",), checkpoints=wrong, progress=False)


def clipping(parameters):
    """Clip in a hook of the optimizer, after step() was called."""
    parameters = list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(parameters, 0.05) and None)
    return optimizer


def scheduling(parameters):
    """Warm up in a hook of the optimizer."""
    optimizer = torch.optim.SGD(parameters, lr=0.0)

    def warm(used, *_):
        used.param_groups[0]["lr"] += 0.1

    optimizer.register_step_pre_hook(warm)
    return optimizer


@pytest.mark.parametrize("rule", [clipping, scheduling])
def test_hooks_of_the_optimizer_are_part_of_the_step(tmp_path, rule):
    """The log holds gradients and learning rates as the update used them."""
    task = traced(tmp_path / "run.h5", linear, rule=rule)
    with open_log(tmp_path / "run.h5") as log:
        if rule is clipping:
            norms = [log.step(t).gradient_norm for t in range(4)]
            assert norms == pytest.approx([0.05] * 4, rel=1e-4)
        else:
            rates = [log.learning_rate(t)[0] for t in range(4)]
            assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    found = Replay(tmp_path / "run.h5", task).influence([0], methods=("tracin",), progress=False)
    assert abs(found.completeness["tracin"]["rounding"]).max() < 1e-7
    assert found.attributes["steps_scaled_outside"] == (4 if rule is clipping else 0)


def test_hooks_of_every_optimizer(tmp_path):
    """Global ones, too."""
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: optimizer.param_groups[0].update(lr=0.25)
    )
    try:
        traced(tmp_path / "run.h5", linear)
    finally:
        handle.remove()
    with open_log(tmp_path / "run.h5") as log:
        assert log.learning_rate(0) == (0.25,)


def test_ids_that_no_file_can_hold(tmp_path):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(optimizer, model, tmp_path / "run.h5") as traced_one:
        model(torch.ones(1, 4)).sum().backward()
        before = model[0].weight.detach().clone()
        with pytest.raises(TracingError, match=r"found '\\ud800x', with half a character"):
            traced_one.step(batch_ids=["\ud800x"])
        assert torch.equal(model[0].weight, before)
        traced_one.step(batch_ids=["\U0001f600x"])
    with open_log(tmp_path / "run.h5") as log:
        assert log.batch_ids(0) == ["\U0001f600x"]


class Complex(nn.Module):
    """One complex weight."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 3, dtype=torch.cfloat))

    def forward(self, x):
        return (x.to(torch.cfloat) @ self.w).abs()


def test_complex_parameters_are_refused(tmp_path):
    task = Task(Complex, lambda m, b: m(b[0]).sum(1), DATA, DATA[:4])
    model = Complex()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(optimizer, model, tmp_path / "run.h5") as traced_one:
        task.loss(model, task.collate(DATA[:4])).mean().backward()
        traced_one.step(batch_ids=[0, 1, 2, 3])
    with pytest.raises(TaskError, match=r"'w' of task.model\(\) is torch.complex64, and gradients"):
        Replay(tmp_path / "run.h5", task)


def test_lazy_models_are_refused(tmp_path):
    task = traced(tmp_path / "run.h5", linear)
    lazy = Task(lambda: nn.Sequential(nn.LazyLinear(6)), task.loss, task.train, task.test)
    with pytest.raises(TaskError, match=r"'0.weight' of task.model\(\) has no shape yet; run a"):
        Replay(tmp_path / "run.h5", lazy)
