"""Several optimizers in Lightning's manual optimization: in turns, and on the same gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: make test-integrations")

from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tests.integrations import modules as m
from tracer import TracingOptimizer, open_log
from tracer.integrations.training_step import TrainingStep

pytestmark = pytest.mark.filterwarnings("ignore", "error::tracer.errors.TracingWarning")
ROWS = [row for row, _ in m.DATA]


def noise(module, rows):
    return torch.randn(len(rows), 2, dtype=rows.dtype)


def telling(module, rows, made):
    return F.softplus(-module.judge(rows)[:, 0]) + F.softplus(module.judge(made)[:, 0])


def discriminating(module, rows):
    return telling(module, rows, module.generator(noise(module, rows)).detach())


def generating(module, rows):
    return F.softplus(-module.judge(module.generator(noise(module, rows)))[:, 0])


def judging(module, rows):
    return module.judge(rows)[:, 0]


LOSSES = {0: discriminating, 1: generating}


class Adversaries(m.L.LightningModule):
    """Each turn draws noise of its own, and its loss is as the task has it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        hidden = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh()
        self.generator = nn.Sequential(*hidden, nn.Linear(8, 5))
        self.judge = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    def training_step(self, rows, number):
        for one, loss in zip(self.optimizers(), LOSSES.values(), strict=True):
            one.zero_grad()
            self.manual_backward(loss(self, rows).mean())
            one.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(p.parameters(), lr=0.01) for p in (self.judge, self.generator)]


class Toggled(Adversaries):
    """As Lightning's own example: noise for both, toggled, zeroed after each step; clips, too."""

    def __init__(self):
        super().__init__()
        del self.judge[2]

    def training_step(self, rows, number):
        drawn = noise(self, rows)
        judge, generator = self.optimizers()
        self.toggle_optimizer(judge)
        self.manual_backward(telling(self, rows, self.generator(drawn).detach()).mean())
        self.clip_gradients(judge, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        judge.step()
        judge.zero_grad()
        self.untoggle_optimizer(judge)
        self.toggle_optimizer(generator)
        self.manual_backward(F.softplus(-self.judge(self.generator(drawn))[:, 0]).mean())
        generator.step()
        generator.zero_grad()
        self.untoggle_optimizer(generator)


class Once(Toggled):
    """Makes its fakes once, for two backward passes of one turn and one of the other."""

    def training_step(self, rows, number):
        judge, generator = self.optimizers()
        judge.zero_grad()
        self.manual_backward(F.softplus(-self.judge(rows)[:, 0]).mean())
        made = self.generator(noise(self, rows))
        self.manual_backward(F.softplus(self.judge(made.detach())[:, 0]).mean())
        judge.step()
        generator.zero_grad()
        self.manual_backward(F.softplus(-self.judge(made)[:, 0]).mean())
        judge.zero_grad()  # of what the other one's loss left there
        generator.step()


class Often(Adversaries):
    """Its discriminator steps at each batch, in a closure, its generator at every second one."""

    def training_step(self, rows, number):
        judge, generator = self.optimizers()

        def closure():
            judge.zero_grad()
            self.manual_backward(discriminating(self, rows).mean())

        judge.step(closure)
        generator.zero_grad()
        self.manual_backward(generating(self, rows).mean())
        if number % 2:
            generator.step()


class AtOnce(m.Usual):
    """Matrices by Muon, the rest by AdamW, on gradients of one moment."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, number):
        self.manual_backward(self.losses(batch).mean() / 2)
        if number % 2:
            for one in self.optimizers():
                self.clip_gradients(one, gradient_clip_val=0.3, gradient_clip_algorithm="norm")
                one.step()
                one.zero_grad()

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.ndim == 2]
        others = [p for p in self.parameters() if p.ndim != 2]
        return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]


def game(kind, losses=LOSSES):
    def build():
        torch.manual_seed(1)
        return kind()

    return Task(build, losses, ROWS, ROWS, measure=judging)


CASES = {
    "own noise": game(Adversaries),
    "noise of both, toggled, clipped": game(Toggled),
    "made once, two backward passes": game(Once),
    "a closure, and turns that are left out": game(Often),
    "at once": m.task_of(AtOnce),
}
STEPS = {"a closure, and turns that are left out": 18, "at once": 6}


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_and_every_step_is_proved(tmp_path, name):
    task, steps = CASES[name], STEPS.get(name, 24)
    plain = m.fitted(task, tmp_path)
    found = m.fitted(task, tmp_path, tmp_path / "run.h5")
    assert m.same_bits(plain, found)
    assert plain.trainer.global_step == steps * (1 + (name == "at once"))
    assert {type(one).__module__.split(".")[0] for one in found.trainer.optimizers} == {"torch"}
    run = Replay(tmp_path / "run.h5", task)
    assert run.verify(progress=False).steps == range(steps)
    assert {step.epoch for step in run.log.steps()} == {0, 1}
    assert {len(step.micro_batches) for step in run.log.steps()} == {1 + (name == "at once")}
    assert run.influence([0], methods=["tracin"], progress=False).scores["tracin"].any()


@pytest.mark.parametrize("name", ["own noise", "at once"])
@pytest.mark.parametrize("every", [1, 4])
def test_a_run_goes_on_from_the_trainers_checkpoint(tmp_path, name, every):
    task, log, how = CASES[name], tmp_path / "run.h5", {"snapshot_every": every}
    kept = m.L.pytorch.callbacks.ModelCheckpoint(save_last=True)
    once = {"max_epochs": 1, "callbacks": [kept], "enable_checkpointing": True}
    m.fitted(task, tmp_path, log, how=how, seed=4, **once)
    last = {"resume": kept.last_model_path, "seed": 5}
    plain = m.fitted(task, tmp_path / "plain", **last)
    found = m.fitted(task, tmp_path, log, how=how, **last)
    assert m.same_bits(plain, found)
    run = Replay(log, task)
    assert run.verify(progress=False).steps == range(STEPS.get(name, 24))


def test_scores_are_those_of_a_plain_loop(tmp_path):
    task = CASES["own noise"]
    m.fitted(task, tmp_path, tmp_path / "trainer.h5")
    with open_log(tmp_path / "trainer.h5") as log:
        steps = [step.micro_batches[0] for step in log.steps()]
    module = task.model()
    forward = TrainingStep(module)
    parts = dict(enumerate(module.configure_optimizers()))
    wrapper = TracingOptimizer({"judge": parts[0], "made": parts[1]}, forward, tmp_path / "loop.h5")
    with wrapper:
        for t, part in enumerate(steps):
            one = wrapper["made" if t % 2 else "judge"]
            one.zero_grad()
            torch.set_rng_state(part.random_state.cpu)
            rows = torch.stack([ROWS[i] for i in part.ids])
            forward(LOSSES[t % 2], module, rows).mean().backward()
            one.step(batch_ids=part.ids)
    named = game(Adversaries, {"judge": discriminating, "made": generating})
    found = [
        Replay(tmp_path / file, one).influence([0, 3], methods=["tracin"], progress=False)
        for file, one in (("trainer.h5", task), ("loop.h5", named))
    ]
    ours, theirs = (one.scores["tracin"] for one in found)
    assert np.allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())
    assert theirs.any()
