"""TracInIdeal: closed form, completeness, tolerances, Taylor orders."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from replay import Replay
from replay.command.show.completeness import completeness_table
from tests.helpers.cases import Attention, Case, mlp, next_token, squared
from tracer.errors import InputError

LINEAR = Case(
    "linear", lambda: nn.Linear(4, 1, bias=False), squared, "real", batches=((3,), (1,)),
    options={"lr": 0.2},
)  # fmt: skip


def traced(case, tmp_path, **options):
    """Trace a case and return its replay."""
    task = case.trace(tmp_path / "run.h5")
    return Replay(tmp_path / "run.h5", task=task, **options)


def test_linear_regression_closed_form(tmp_path):
    # one example a step: ideal = η r r' x·x' − ½ η² r² (x·x')², tracin = η r r' x·x'
    run = traced(LINEAR, tmp_path)
    found = run.influence([0, 1, 2], progress=False)
    for t, z in enumerate([3, 1]):
        w = run.log.parameters(t)["weight"][0]
        (rate,) = run.log.learning_rate(t)
        x, y = run.task.train[z]
        for j, k in enumerate(found.test_ids):
            x_, y_ = run.task.test[k]
            r, r_, product = (w @ x - y).item(), (w @ x_ - y_).item(), (x @ x_).item()
            first = rate * r * r_ * product
            exact = first - 0.5 * rate**2 * r**2 * product**2
            column = found.train_ids.index(z)
            assert math.isclose(found.scores["tracin"][j, column], first, rel_tol=1e-10)
            assert math.isclose(found.scores["ideal"][j, column], exact, rel_tol=1e-10)
            assert math.isclose(found.drops["ideal"][t, j], exact, rel_tol=1e-9)


def test_batch_of_one_is_the_measured_drop(tmp_path):
    run = traced(Case("one", mlp, batches=((3,), (1,), (4,))), tmp_path)
    found = run.influence([0, 1], methods=("ideal",), progress=False)
    for t, z in enumerate([3, 1, 4]):
        scores = found.scores["ideal"][:, found.train_ids.index(z)]
        assert np.allclose(scores, found.drops["ideal"][t], rtol=1e-9, atol=1e-12)


def test_halving_the_learning_rate_quarters_the_first_order_gap(tmp_path):
    gaps = []
    for rate in (2e-3, 1e-3):
        case = Case("step", mlp, batches=((0, 1, 2, 3),), options={"lr": rate})
        (tmp_path / str(rate)).mkdir()
        run = traced(case, tmp_path / str(rate))
        found = run.influence([0, 1, 2], methods=("tracin", "ideal"), progress=False)
        gaps.append(found.drops["ideal"][0] - found.drops["tracin"][0])
    assert np.allclose(gaps[0] / gaps[1], 4, rtol=0.05)


def relu(rate):
    """An MLP with kinks."""
    return Case("relu", lambda: mlp(nn.ReLU), options={"lr": rate})


def test_secant_is_complete_on_relu_wherever_theta_is_inside(tmp_path):
    found = traced(relu(0.5), tmp_path).influence([0, 1, 2, 3], methods=("ideal",), progress=False)
    inside = found.quadrature["theta_inside"]
    residual = np.abs(found.terms["ideal"]["residual"])
    assert 0.5 < inside.mean() <= 1
    assert residual[inside].max() <= 1e-10 * np.abs(found.terms["ideal"]["data"]).max()


@pytest.mark.parametrize("rate", [0.5, 4.0])
def test_secant_without_refinement_equals_its_definition(tmp_path, rate):
    run = traced(relu(rate), tmp_path)
    found = run.influence([0, 1], methods=("ideal",), ideal_tolerance=None, progress=False)
    assert np.isnan(found.quadrature["split_error"]).all()
    assert (found.quadrature["gradients"] == 2).all()
    for t in range(len(run.log)):
        w, after = (_flat(run.log.parameters(k)) for k in (t, t + 1))
        for j, identity in enumerate(found.test_ids):
            (start, q_a), (stop, q_b) = (_value_and_gradient(run, v, identity) for v in (w, after))
            left, right = q_a @ (w - after), q_b @ (w - after)
            theta = min(1.0, max(0.0, ((start - stop - right) / (left - right)).item()))
            mean = theta * q_a + (1 - theta) * q_b
            slope = sum(found.terms["ideal"][term][t, j] for term in ("data", "rounding"))
            assert math.isclose(slope, (mean @ (w - after)).item(), rel_tol=1e-9, abs_tol=1e-13)
            inside = math.isclose(slope, start - stop, rel_tol=1e-8, abs_tol=1e-13)
            assert found.quadrature["theta_inside"][t, j] == inside
    # at the larger rate some drops are out of the secant's reach: θ stops at its bounds
    assert found.quadrature["theta_inside"].all() == (rate == 0.5)


def _flat(parameters):
    return torch.cat([p.flatten() for p in parameters.values()])


def _value_and_gradient(run, w, identity):
    module = run.task.model()
    nn.utils.vector_to_parameters(w, module.parameters())
    value = run.task.loss(module, run.task.collate([run.task.test[identity]]))[0]
    return value.item(), _flat(dict(enumerate(torch.autograd.grad(value, module.parameters()))))


def test_split_converges_with_the_tolerance(tmp_path):
    run = traced(relu(0.5), tmp_path)
    exact = _by_plain_gradients(run, [0, 1, 2], midpoints(100))
    errors, used = [], []
    for tolerance in (None, 3e-1, 1e-3):
        found = run.influence(
            [0, 1, 2], methods=("ideal",), ideal_tolerance=tolerance, progress=False
        )
        errors.append(np.abs(found.scores["ideal"] - exact).max() / np.abs(exact).max())
        used.append(found.quadrature["gradients"].mean())
    assert errors[2] < errors[0] / 3
    assert errors[2] <= errors[1] <= errors[0]
    assert used[0] < used[1] < used[2]


ATTENTION = Case(
    "attention", lambda: Attention(activation=nn.functional.gelu), next_token, "tokens",
    batches=((0, 1, 2), (3, 4, 5), (6, 7)), options={"lr": 0.3, "momentum": 0.9},
)  # fmt: skip


def test_smooth_models_meet_a_tolerance_of_1e_9_with_15_points_at_most(tmp_path):
    run = traced(ATTENTION, tmp_path)
    found = run.influence([0, 1], methods=("ideal",), ideal_tolerance=1e-9, progress=False)
    for nodes in (16, 32):
        exact = _by_plain_gradients(run, [0, 1], gauss(nodes), momentum=0.9)
        assert np.linalg.norm(found.scores["ideal"] - exact) <= 1e-9 * np.linalg.norm(exact)
    assert found.quadrature["split_error"].max() <= 1e-9
    assert not found.beyond_tolerance.any()
    assert found.quadrature["gradients"].max() <= 2 + 15
    assert np.abs(found.terms["ideal"]["residual"]).max() < 1e-12


def test_smooth_steps_that_are_steep_meet_it_with_more(tmp_path):
    """With a tanh and a large step, the first look takes smooth steps for kinked ones."""
    options, batches = {"lr": 2.0}, ((0, 1), (2, 3))
    run = traced(Case("tanh", lambda: mlp(nn.Tanh), options=options, batches=batches), tmp_path)
    found = run.influence([0, 1], methods=("ideal",), ideal_tolerance=1e-9, progress=False)
    exact = _by_plain_gradients(run, [0, 1], gauss(64))
    assert np.linalg.norm(found.scores["ideal"] - exact) <= 1e-9 * np.linalg.norm(exact)
    assert not found.beyond_tolerance.any()
    assert found.quadrature["gradients"].max() > 2 + 15


def test_a_tolerance_that_is_not_met_is_reported(tmp_path):
    found = traced(relu(4.0), tmp_path).influence(
        [0, 1, 2], methods=("ideal",), ideal_tolerance=1e-7, progress=False
    )
    errors, beyond = found.quadrature["split_error"], found.beyond_tolerance
    assert np.array_equal(beyond, errors > 1e-7)
    assert 0 < beyond.sum() < beyond.size
    assert (found.quadrature["gradients"][beyond] >= 2 + 15).all()
    asked = f"1e-07; {beyond.sum()} of {beyond.size} splits may be off by more"
    assert asked in repr(found)
    with io.StringIO() as file:
        Console(file=file, width=100).print(completeness_table(found))
        shown = file.getvalue()
    assert f"{beyond.sum()} of {beyond.size} splits may be off by more than 1e-07" in shown
    t, j = np.unravel_index(errors.argmax(), errors.shape)
    assert f"step {t}, test example {found.test_ids[j]}" in " ".join(shown.split())
    assert (
        f"{100 * (1 - beyond.mean()):.1f} %" in shown.split("splits within 1e-07")[1].split("\n")[0]
    )


def test_other_test_examples_change_nothing(tmp_path):
    """Some points are asked for in several rounds, for other test examples in each."""
    case = Case("kinks", lambda: mlp(nn.ReLU), options={"lr": 1.0, "momentum": 0.9})
    run = traced(case, tmp_path)
    chosen = {"methods": ("ideal",), "ideal_tolerance": 1e-4, "progress": False}
    together = run.influence([0, 1, 2, 3], **chosen)
    for k in range(4):
        alone = run.influence([k], **chosen)
        assert np.allclose(alone.scores["ideal"], together.scores["ideal"][[k]], rtol=1e-8)
        for name, table in alone.quadrature.items():
            assert np.allclose(table, together.quadrature[name][:, [k]], rtol=1e-5), name


def midpoints(count):
    """Return nodes and weights of the midpoint rule."""
    return [((k + 0.5) / count, 1 / count) for k in range(count)]


def gauss(count):
    """Return those of the rule of Gauss and Legendre."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return list(zip((1 + points) / 2, weights / 2, strict=True))


def _by_plain_gradients(run, test_ids, rule, momentum=0.0):
    """Return the scores of means over many nodes, by plain gradients, step by step backwards."""
    train_ids = run.influence(test_ids, methods=("tracin",), progress=False).train_ids
    scores = np.zeros((len(test_ids), len(train_ids)))
    later = [0.0] * len(test_ids)
    for t in reversed(range(len(run.log))):
        w, after = (_flat(run.log.parameters(k)) for k in (t, t + 1))
        (rate,) = run.log.learning_rate(t)
        ids = run.log.batch_ids(t)
        for j, identity in enumerate(test_ids):
            mean = sum(
                weight * _value_and_gradient(run, w - u * (w - after), identity)[1]
                for u, weight in rule
            )
            later[j] = rate * mean + momentum * later[j]
            for z in ids:
                module = run.task.model()
                nn.utils.vector_to_parameters(w, module.parameters())
                loss = run.task.loss(module, run.task.collate([run.task.train[z]]))[0]
                g = _flat(dict(enumerate(torch.autograd.grad(loss, module.parameters()))))
                scores[j, train_ids.index(z)] += (later[j] @ g / len(ids)).item()
    return scores


@pytest.mark.parametrize("tolerance", [0, -1.0])
def test_tolerance_must_be_positive(tmp_path, tolerance):
    with pytest.raises(InputError, match="ideal_tolerance must be a positive number or None"):
        traced(LINEAR, tmp_path).influence([0], ideal_tolerance=tolerance, progress=False)
