"""Several optimizers of one model on accelerate: on the same gradients, and in turns."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate", reason="needs accelerate: make test-integrations")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader

from replay import Replay
from tests.helpers.adversarial import DISCRIMINATOR, GENERATOR, Alternating, discriminating, task
from tracer import TracingOptimizer, open_log
from tracer.integrations.accelerate import trace

TASK = task()
ONE_LOSS = type(TASK)(TASK.model, discriminating, TASK.train, TASK.test, collate=TASK.collate)


def together(accelerator, model, optimizers, batch, clipped=("",)):
    for one in optimizers.values():
        one.zero_grad()
    accelerator.backward(discriminating(model, batch).mean())
    for name in clipped:
        accelerator.clip_grad_norm_(model.get_submodule(name).parameters(), 0.05)
    for one in optimizers.values():
        one.step()


def clipped_apart(*given):
    together(*given, clipped=(DISCRIMINATOR, GENERATOR))


def in_turns(accelerator, model, optimizers, batch):
    for key, one in optimizers.items():
        one.zero_grad()
        accelerator.backward(TASK.loss[key](model, batch).mean())
        accelerator.clip_grad_norm_(getattr(model, key).parameters(), 0.05)
        one.step()


def run(log, turn, *, traced=True, parts=1, listed=False):
    """Train two epochs; return the model. Traced, what accelerate holds is as it was."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    accelerator, model = Accelerator(cpu=True, gradient_accumulation_steps=parts), TASK.model()
    inner = Alternating().made(model)
    torch.manual_seed(7)
    loader = DataLoader(TASK.train, 4, shuffle=True)
    model, loader, *prepared = accelerator.prepare(model, loader, *inner.values())
    optimizers = dict(zip(inner, prepared, strict=True))
    tracing = None
    if traced:
        given = prepared if listed else optimizers
        how = {"task": TASK if turn is in_turns else ONE_LOSS}
        tracing = trace(accelerator, model, given, loader, log, **how)
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                turn(accelerator, model, optimizers, batch)
    if tracing is not None:
        tracing.close()
    assert [one.optimizer for one in prepared] == list(inner.values())
    return model


@pytest.mark.filterwarnings("error::tracer.errors.TracingWarning")
@pytest.mark.parametrize(
    ("turn", "how", "steps"),
    [
        (together, {}, 6),
        (together, {"listed": True, "parts": 2}, 4),
        (clipped_apart, {}, 6),
        (in_turns, {}, 12),
        (in_turns, {"parts": 2}, 8),
    ],
)
def test_training_is_the_untraced_one_and_each_step_reproduces(tmp_path, turn, how, steps):
    expected, found = run(None, turn, traced=False, **how), run(tmp_path / "run.h5", turn, **how)
    pairs = zip(expected.parameters(), found.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with open_log(tmp_path / "run.h5") as log:
        assert len(log) == steps
        known = {(step.clip_factor or 1) < 1 for step in log.steps()}
        assert known == {turn is not clipped_apart}  # there norms tell it
    task = TASK if turn is in_turns else ONE_LOSS
    assert str(Replay(tmp_path / "run.h5", task).verify(progress=False)).startswith("steps 0:")


def test_turns_are_those_of_the_wrapper(tmp_path):
    run(tmp_path / "run.h5", in_turns)
    model = TASK.model()
    inner = Alternating().made(model)
    with (
        TracingOptimizer(inner, model, tmp_path / "plain.h5") as optimizer,
        open_log(tmp_path / "run.h5") as log,
    ):
        for t in range(12):
            key, ids = (DISCRIMINATOR, GENERATOR)[t % 2], log.batch_ids(t)
            torch.set_rng_state(log.step(t).micro_batches[0].random_state.cpu)
            optimizer[key].zero_grad()
            TASK.loss[key](model, torch.stack([TASK.train[i] for i in ids])).mean().backward()
            optimizer[key].clip_grad_norm_(0.05)
            optimizer[key].step(batch_ids=ids)
    found, expected = (
        Replay(tmp_path / name, TASK).influence([0, 1], progress=False).scores["ideal"]
        for name in ("run.h5", "plain.h5")
    )
    assert (found == expected).all()
