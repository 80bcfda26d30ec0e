"""Two optimizers that take turns: each step is divided with the loss and the rule of its own."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from replay import Replay, Task
from tests.helpers.adversarial import (
    DISCRIMINATOR,
    GENERATOR,
    Alternating,
    discriminating,
    discriminating_detached,
    trace,
    untraced,
)
from tests.helpers.adversarial import task as build_task
from tests.helpers.comparing import compare
from tracer import TracingOptimizer, open_log
from tracer.errors import GradientError, TaskError, TracingError, TracingWarning
from tracer.rules.table import RULES

ASK = {"methods": ("tracin",), "progress": False}


@pytest.mark.parametrize(("critics", "clip"), [(1, None), (2, 0.05)])
def test_both_equal_the_reference(tmp_path, critics, clip):
    run, _ = trace(tmp_path / "run.h5", critics=critics, clip=clip)
    with open_log(run.path) as log:
        owners = [{n.partition(".")[0] for n in step.moved} for step in log.steps()]
        kappa = [dict.fromkeys(log.parameters(0), s.clip_factor) for s in log.steps()]
    turns = [*[{DISCRIMINATOR}] * critics, {GENERATOR}]
    assert owners == [turns[t % len(turns)] for t in range(6)]
    assert {one["generator.0.bias"] < 1 for one in kappa} == {clip is not None}
    found = compare(run, kappa, methods=("tracin",) if clip else ("tracin", "ideal"))
    assert (np.abs(found.scores["tracin"]).max(1) > 1e-3).all()
    assert found.attributes["as_in_the_run"].startswith("Adam: the second moments")


@pytest.mark.parametrize("every", [1, 4])
def test_training_is_the_untraced_one_and_reproduces(tmp_path, every):
    run, model = trace(tmp_path / "run.h5", clip=0.05, how={"snapshot_every": every})
    alone = untraced(clip=0.05)
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    how = {"snapshot_every": every, "resume": True}
    trace(tmp_path / "again.h5", clip=0.05, steps=4, how=how)
    _, again = trace(tmp_path / "again.h5", clip=0.05, start=4, how=how)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    run = dataclasses.replace(run, path=tmp_path / "again.h5")
    replay = Replay(run.path, run.task)
    found = str(replay.verify(progress=False))
    assert found.startswith("steps 0:6 reproduce")
    assert every == 1 or "bit for bit" in found
    scores = replay.influence([0, 1], **ASK).scores["tracin"]
    if every > 1:
        dense, _ = trace(tmp_path / "dense.h5", clip=0.05)
        expected = Replay(dense.path, dense.task).influence([0, 1], **ASK).scores["tracin"]
        assert np.abs(scores - expected).max() <= 1e-13 * np.abs(expected).max()


def values(model, run):
    """Return the test values, ``(2,)``."""
    with torch.no_grad():
        return run.task.measure(model.eval(), torch.stack(list(run.task.test))).numpy()


def test_without_an_example_and_its_derivative(tmp_path):
    """Against the plain loop, and central differences of it."""
    run, model = trace(tmp_path / "run.h5", clip=0.05)
    replay, one = Replay(run.path, run.task), torch.ones(12, dtype=torch.float64)
    whole = values(model, run)
    found = replay.counterfactual([0, 1], scale=[{3: 0.0}], progress=False)
    scales = one.index_fill(0, torch.tensor(3), 0.0)
    assert np.abs(found.values[0] - values(untraced(clip=0.05, scales=scales), run)).max() < 1e-12
    assert np.abs(found.values[0] - whole).max() > 1e-3
    slopes = replay.influence([0, 1], **ASK | {"methods": ("unrolled",)}).scores["unrolled"]
    blocks = [  # a step of one of them moves nothing of the other
        replay.influence([0, 1], **ASK | {"methods": ("unrolled",), "parameters": f"{name}.*"})
        for name in (GENERATOR, DISCRIMINATOR)
    ]
    assert np.allclose(sum(one.scores["unrolled"] for one in blocks), slopes, rtol=0, atol=1e-13)
    direction, h = torch.linspace(-1, 1, 12, dtype=torch.float64), 1e-5
    ends = [values(untraced(clip=0.05, scales=one + s * h * direction), run) for s in (1, -1)]
    expected = (ends[1] - ends[0]) / (2 * h)
    assert np.abs(slopes @ direction.numpy() - expected).max() < 1e-7 * np.abs(expected).max()


def test_what_is_detached_has_no_second_derivative(tmp_path):
    """The discriminator's gradient depends on the generator, which torch then does not know."""
    run, _ = trace(tmp_path / "run.h5")
    losses = {**run.task.loss, DISCRIMINATOR: discriminating_detached}
    replay = Replay(run.path, dataclasses.replace(run.task, loss=losses))
    assert str(replay.verify(progress=False)).startswith("steps 0:6 reproduce")
    with pytest.raises(GradientError, match=r"(?s)step 4: torch's second derivatives.*detach"):
        replay.influence([0], methods=("unrolled",), progress=False)


def test_own_effects_are_those_of_each_step(tmp_path):
    run, _ = trace(tmp_path / "run.h5", steps=4)
    found = Replay(run.path, run.task).self_influence(progress=False)
    assert (found.scores["self"] > 0).sum() >= 4


class Asking(type(RULES["SGD"])):
    """Asks for the rate after a step, which is that of its optimizer's next one."""

    after = ("lr",)

    def step(self, now):
        assert now.numbers["lr after"] == now.numbers["lr"] == 0.2
        return super().step(now)


def test_numbers_after_a_step_are_those_of_the_next_one_of_its_optimizer(tmp_path):
    run, _ = trace(tmp_path / "run.h5", steps=4)
    found = Replay(run.path, run.task, rules={"SGD": Asking()}).verify(progress=False)
    assert str(found).startswith("steps 0:4 reproduce")


def test_a_checkpoint_is_a_turn_of_each(tmp_path):
    """``Σ_k Σ_o η_o ⟨∇_o φ, ∇_o ℓ_o⟩``, the paper's sum with the loss and parameters of each."""
    run, _ = trace(tmp_path / "run.h5", steps=5, critics=2)
    replay, points = Replay(run.path, run.task), [1, 5]
    found = replay.influence([0, 1], methods=("tracincp",), checkpoints=points, progress=False)
    own = replay.self_influence(checkpoints=points, progress=False).scores["tracincp"]
    expected, squares = np.zeros((2, 12)), np.zeros(12)
    for k in points:
        model = run.task.model().eval()
        model.load_state_dict(replay.log.parameters(k))
        sides = [[run.task.train[i] for i in range(12)], [run.task.test[j] for j in range(2)]]
        for key, rate in ((DISCRIMINATOR, 0.2), (GENERATOR, 0.02)):
            part = list(getattr(model, key).parameters())
            g, q = (
                torch.stack([flat(function(model, x[None])[0], part) for x in side])
                for function, side in zip(
                    (run.task.loss[key], run.task.measure), sides, strict=True
                )
            )
            expected += rate * (q @ g.T).numpy()
            squares += rate * g.square().sum(1).numpy()
    assert np.abs(found.scores["tracincp"] - expected).max() <= 1e-12 * np.abs(expected).max()
    assert np.abs(own - squares).max() <= 1e-12 * squares.max()
    every = replay.influence([0], progress=False)  # the usual methods
    assert set(every.scores) == {"tracin", "ideal", "tracincp"}


def flat(value, parameters):
    """Return a gradient as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def test_a_step_without_a_loss_of_its_own(tmp_path):
    run, _ = trace(tmp_path / "run.h5", steps=2)
    other = dataclasses.replace(run.task, loss={"critic": discriminating})
    with pytest.raises(TaskError, match=r"(?s)losses for 'critic'.*taken by 'disc.*1\. Name the"):
        Replay(run.path, other).verify(progress=False)
    with pytest.raises(TaskError, match=r"(?s)losses for 'critic'.*taken by 'disc.*1\. Name the"):
        Replay(run.path, other).influence([0], methods=("tracincp",), progress=False)


def test_a_task_with_two_losses_says_what_is_measured():
    losses = {DISCRIMINATOR: discriminating, GENERATOR: discriminating}
    with pytest.raises(TaskError, match=r"has 2 losses, and Task\(measure=\.\.\.\) has to say"):
        Task(torch.nn.Identity, losses, [0], [0])


def of_all(optimizer, ids):
    optimizer.step(batch_ids=ids)


def one_after_the_other(optimizer, ids):
    optimizer[DISCRIMINATOR].step(batch_ids=ids)
    optimizer[GENERATOR].step()


@pytest.mark.parametrize("step", [of_all, one_after_the_other])
@pytest.mark.parametrize("one_loss", [False, True])
def test_a_step_of_both_is_said_at_once_if_each_has_a_loss(tmp_path, step, one_loss):
    """The task's one loss is the other remedy; a step is then a step of both."""
    task, ids = build_task(), [0, 1, 2, 3]
    if one_loss:
        task = dataclasses.replace(task, loss=discriminating, measure=None)
    model = task.model()
    optimizers = Alternating().made(model)
    with TracingOptimizer(optimizers, model, tmp_path / "run.h5", task=task) as optimizer:
        for t in range(5):
            optimizer.zero_grad()
            discriminating(model, torch.stack([task.train[i] for i in ids])).mean().backward()
            said = r"step 0 of .*, and the task has a loss for each.*1\. .*optimizer\['disc"
            first = t == 0 and not one_loss
            with pytest.warns(TracingWarning, match=f"(?s){said}") if first else nullcontext():
                step(optimizer, ids)
    run = Replay(tmp_path / "run.h5", task)
    said = r"(?s)taken by 'disc.*' and 'gen.*1\. Have each .*optimizer\['disc.*'\]\.step\(batch_ids"
    with nullcontext() if one_loss else pytest.raises(TaskError, match=said):
        run.verify(progress=False)


@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (dict, "'disc.*', 'gen.*', and none for the optimizer 'g', whose"),
        (list, r"\(without a name"),
    ],
)
def test_an_optimizer_without_a_loss_is_an_error_at_once(tmp_path, wrapped, said):
    task = build_task()
    model = task.model()
    half = torch.optim.SGD(model.discriminator.parameters())
    other = torch.optim.SGD(model.generator.parameters())
    inner = {DISCRIMINATOR: half, "g": other} if wrapped is dict else half
    with pytest.raises(TracingError, match=f"(?s)losses for .*{said}.*1\\. Name the opt"):
        TracingOptimizer(inner, model, tmp_path / "run.h5", task=task)
    assert not list(tmp_path.iterdir())
