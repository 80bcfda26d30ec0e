"""Several optimizers in one wrapper: training stays bitwise the same, whatever the loop calls."""

from __future__ import annotations

import zlib

import h5py
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from replay import Replay
from tests.helpers.mixed import MUON_ADAMW, SGD_ADAM
from tests.helpers.rules import task
from tracer import TracingOptimizer, TracingSGD, open_log
from tracer.errors import LogError, TracingError, TracingWarning
from tracer.log.parts.seals import sealed

TASK = task()
STEPS = 6


def schedules(kind, optimizer, parts):
    """Return schedulers: one of the whole, one of each optimizer, or of each as it was wrapped."""
    if kind == "whole":
        return [lr_scheduler.StepLR(optimizer, 2, gamma=0.5)]
    if kind is None:
        return []
    return [lr_scheduler.CosineAnnealingLR(parts[0], STEPS), lr_scheduler.StepLR(parts[1], 2)]


def run(path, rule=SGD_ADAM, *, schedule=None, closure=False, steps=STEPS, how=None, start=0):
    """Train with or without tracing; return model and optimizers."""
    model = TASK.model()
    plain = rule.made(model.parameters())
    traced = None if path is None else TracingOptimizer(plain.parts, model, path, **(how or {}))
    optimizer = traced or plain
    parts = [traced[0], traced[1]] if traced and schedule == "parts" else plain.parts
    plans = schedules(schedule if traced else schedule and "inner", optimizer, parts)
    if schedule == "whole" and not traced:
        plans = [lr_scheduler.StepLR(one, 2, gamma=0.5) for one in plain.parts]
    generator = torch.Generator().manual_seed(3)
    for t in range(steps):
        ids = torch.randperm(12, generator=generator)[:4].tolist()
        if t < start:
            continue

        def objective(ids=ids):
            optimizer.zero_grad()
            loss = TASK.loss(model, TASK.collate([TASK.train[i] for i in ids])).mean()
            loss.backward()
            return loss

        named = {"batch_ids": ids} if traced else {}
        if closure and traced:
            optimizer.step(objective, **named)
        else:
            objective()
            if traced:
                traced.clip_grad_norm_(0.3)
            elif not closure:
                nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step(**named)
        for plan in plans:
            plan.step()
    if traced:
        traced.close()
    return model, plain.parts


def alike(left, right):
    """Return whether two runs led to the same, to the last bit."""
    pairs = zip(left[0].parameters(), right[0].parameters(), strict=True)
    states = [[s for part in run[1] for s in part.state.values()] for run in (left, right)]
    entries = [(a[k], b[k]) for a, b in zip(*states, strict=True) for k in a]
    return all(torch.equal(a, b) for a, b in [*pairs, *entries] if isinstance(a, torch.Tensor))


@pytest.mark.parametrize("rule", [MUON_ADAMW, SGD_ADAM], ids=str)
@pytest.mark.parametrize(
    ("schedule", "closure"),
    [(None, False), ("whole", False), ("parts", False), ("inner", False), ("parts", True)],
)
def test_training_is_bitwise_the_same(tmp_path, rule, schedule, closure):
    traced = run(tmp_path / "run.h5", rule, schedule=schedule, closure=closure)
    assert alike(traced, run(None, rule, schedule=schedule, closure=closure))
    with open_log(tmp_path / "run.h5") as log:
        rates = [log.learning_rate(t) for t in range(STEPS)]
        assert log.metadata["update_rule"] == " + ".join(type(p).__name__ for p in traced[1])
    assert len(set(rates)) == 1 if schedule is None else len(set(rates)) > 2


@pytest.mark.parametrize("every", [1, 2])
def test_resumed(tmp_path, every):
    how = {"snapshot_every": every} | ({"state_every": 2} if every == 1 else {})
    whole = run(tmp_path / "whole.h5", how=how)
    run(tmp_path / "run.h5", how=how, steps=4)
    assert alike(whole, run(tmp_path / "run.h5", how=how | {"resume": True}, start=4))
    with open_log(tmp_path / "run.h5") as log, open_log(tmp_path / "whole.h5") as expected:
        for t in range(STEPS):
            assert repr(log.step(t).numbers) == repr(expected.step(t).numbers)
            assert log.step(t).optimizers == expected.step(t).optimizers


def test_resuming_with_other_groups_changes_nothing(tmp_path):
    run(tmp_path / "run.h5", how={"state_every": 2}, steps=2)
    model = TASK.model()
    first, *others = model.parameters()
    parts = [torch.optim.SGD([first], 0.1), torch.optim.Adam(others)]
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TracingError, match=r"optimizer 0 has groups of \[1\] .* state of \[1, 1\]"):
        TracingOptimizer(parts, model, tmp_path / "run.h5", resume=True)
    assert all(map(torch.equal, before, model.parameters()))


def test_what_is_saved_can_be_loaded(tmp_path):
    model, parts = run(tmp_path / "run.h5", MUON_ADAMW)
    optimizer = TracingOptimizer(parts, model, tmp_path / "other.h5")
    saved = optimizer.state_dict()
    assert [group["optimizer"] for group in saved["param_groups"]] == [0, 0, 1]
    other = TASK.model()
    made = MUON_ADAMW.made(other.parameters()).parts
    fresh = TracingOptimizer(made, other, tmp_path / "third.h5")
    fresh.load_state_dict(saved)
    assert [len(part.state) for part in made] == [len(part.state) for part in parts] == [2, 2]
    assert alike((model, made), (model, parts))
    assert len(fresh.state) == 4
    for wrapper in (optimizer, fresh):
        with pytest.warns(TracingWarning, match="closed without a step"):
            wrapper.close()


def test_groups_are_added_to_one_of_them(tmp_path):
    model = TASK.model()
    parts = [torch.optim.SGD([model[0].weight], 0.1), torch.optim.Adam(model[2].parameters())]
    with pytest.warns(
        TracingWarning, match=r"1 parameters .* in no group .*: '0.bias'\. .*\n1\. A"
    ):
        optimizer = TracingOptimizer({"sgd": parts[0], "adam": parts[1]}, model, tmp_path / "r.h5")
    with pytest.raises(TracingError, match=r"(?s)2 optimizers together.*optimizer\['sgd'\]\.add"):
        optimizer.add_param_group({"params": [model[0].bias]})
    with pytest.raises(TracingError, match="the traced model does not have"):
        optimizer["sgd"].add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    optimizer["sgd"].add_param_group({"params": [model[0].bias], "lr": 0.5})
    with optimizer:
        TASK.loss(model, TASK.collate(TASK.train[:3])).mean().backward()
        optimizer.step(batch_ids=[0, 1, 2])
    with open_log(tmp_path / "r.h5") as log:
        assert log.step(0).optimizers == {"0.weight": 0, "0.bias": 0, "2.weight": 1, "2.bias": 1}
        assert log.learning_rate(0) == (0.1, 0.5, 0.001)
        assert log.step(0).micro_batches[0].optimizers == ("sgd", "adam")


def test_a_scaler_scales_both(tmp_path):
    """Fused optimizers take scaled gradients; a step in which one overflows is none."""
    model = TASK.model().float()
    halves = [torch.optim.SGD(model[0].parameters(), 0.1, fused=True),
              torch.optim.AdamW(model[2].parameters(), 0.1, fused=True)]  # fmt: skip
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with TracingOptimizer(halves, model, tmp_path / "run.h5") as optimizer:
        for scale in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            batch = TASK.collate([(x.float(), y) for x, y in TASK.train[:3]])
            scaler.scale(TASK.loss(model, batch).mean() * scale).backward()
            scaler.step(optimizer, batch_ids=[0, 1, 2])
            scaler.update()
    with open_log(tmp_path / "run.h5") as log:
        assert len(log) == 2
        assert log.step(0).gradient_norm < 5


PARTED = {
    "together": None,
    "one after the other": (0, 1),
    "the other first": (1, 0),
    "each told the IDs": (1, 0),
}


@pytest.mark.parametrize(("how", "order"), PARTED.items(), ids=PARTED)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_optimizers_that_step_on_gradients_of_one_moment_take_one_step(tmp_path, how, order, clip):
    model = TASK.model()
    parts = MUON_ADAMW.made(model.parameters()).parts
    with TracingOptimizer(parts, model, tmp_path / "run.h5") as optimizer:
        for t in range(3):
            ids = [t, t + 1, t + 2]
            optimizer[0].zero_grad(), optimizer[1].zero_grad()
            TASK.loss(model, TASK.collate([TASK.train[i] for i in ids])).mean().backward()
            given = {"batch_ids": ids}
            for k in order or ():
                if clip:
                    optimizer[k].clip_grad_norm_(clip)
                optimizer[k].step(**given)
                given = given if "IDs" in how else {}
            if order is None:
                if clip:
                    optimizer[0].clip_grad_norm_(clip), optimizer[1].clip_grad_norm_(clip)
                optimizer.step(batch_ids=ids)
    run = Replay(tmp_path / "run.h5", TASK)
    found = run.verify(progress=False)
    assert (found.steps, found.unsplit) == (range(3), None)
    assert all(len(set(run.log.step(t).optimizers.values())) == 2 for t in range(3))


@pytest.mark.parametrize(("key", "ids"), [(0, [0, 1, 2, 3]), (1, [2, 3])])
def test_an_optimizer_zeroes_its_own_gradients(tmp_path, key, ids):
    model = TASK.model()
    parts = SGD_ADAM.made(model.parameters()).parts
    with TracingOptimizer(parts, model, tmp_path / "run.h5") as optimizer:
        for batch in ([0, 1], [2, 3]):
            TASK.loss(model, TASK.collate([TASK.train[i] for i in batch])).mean().backward()
            optimizer.observe(batch)
            if batch == [0, 1]:
                optimizer[1].zero_grad()
        optimizer[key].step()
    with open_log(tmp_path / "run.h5") as log:
        assert log.batch_ids(0) == ids


def test_steps_of_one_moment_and_other_examples_are_said(tmp_path):
    model = TASK.model()
    parts = MUON_ADAMW.made(model.parameters()).parts
    with TracingOptimizer(parts, model, tmp_path / "run.h5") as optimizer:
        for _ in range(2):
            optimizer.zero_grad()
            TASK.loss(model, TASK.collate(TASK.train[:3])).mean().backward()
            optimizer[0].step(batch_ids=[0, 1, 2])
            if not len(optimizer[1].state):
                said = r"(?s)optimizer 1 took step 1, and no gradient .*\n1\. If both .*\n2\. else"
                with pytest.warns(TracingWarning, match=said):
                    optimizer[1].step(batch_ids=[2, 3])
            else:
                optimizer[1].step(batch_ids=[2, 3])  # once is enough
    assert len(open_log(tmp_path / "run.h5")) == 4


@pytest.mark.parametrize("number", [2.0, -1.0, 0.5, float("nan")])
def test_a_group_of_an_optimizer_that_is_none(tmp_path, number):
    run(tmp_path / "run.h5", steps=1)
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        row = file["steps/hyper"][:]
        row[1, 0] = number
        file["steps/hyper"][:] = row
        meta = file["steps/meta"][:]
        meta["hyper_crc"] = zlib.crc32(row.tobytes())
        file["steps/meta"][:] = sealed(meta, "record_crc")
    with open_log(tmp_path / "run.h5") as log, pytest.raises(LogError, match="steps/hyper"):
        log.step(0)


def test_what_cannot_be_joined(tmp_path):
    model, path = TASK.model(), tmp_path / "run.h5"
    every, some = list(model.parameters()), [model[2].weight]
    sgd, adam = torch.optim.SGD(every, 0.1), torch.optim.Adam(some)
    for given, said in {
        (): "expected optimizers to wrap, found none",
        (sgd, adam): r"optimizers 0 and 1 have one parameter in common, of shape \(3, 5\)",
        (sgd, "adam"): "expected a torch optimizer to wrap, found str",
        (adam, torch.optim.LBFGS([every[0]])): r"(?s)optimizer 1, a torch.optim.LBFGS, .*1\. Wrap",
    }.items():
        with pytest.raises(TracingError, match=said):
            TracingOptimizer(list(given), model, path)
    with pytest.raises(TracingError, match="names of optimizers are words .* found 'a b'"):
        TracingOptimizer({"a b": sgd}, model, path)
    with pytest.raises(TracingError, match=r"found torch\.optim\.SGD \+ torch\.optim\.SGD"):
        TracingSGD([torch.optim.SGD([p], 0.1) for p in every[:2]], model, path)
    with TracingOptimizer(sgd, model, path) as alone:
        with pytest.raises(TracingError, match=r"no optimizer 0; it has none: it wraps one"):
            alone[0]
        TASK.loss(model, TASK.collate(TASK.train[:3])).mean().backward()
        alone.step(batch_ids=[0, 1, 2])


def test_a_scheduler_that_moves_momentum_asks_for_what_all_groups_have(tmp_path):
    model = TASK.model()
    with TracingOptimizer(
        SGD_ADAM.made(model.parameters()).parts, model, tmp_path / "r.h5"
    ) as both:
        assert "weight_decay" in both.defaults
        with pytest.raises(ValueError, match="must support momentum or beta1"):
            lr_scheduler.OneCycleLR(both, max_lr=0.1, total_steps=4)
        lr_scheduler.OneCycleLR(both, max_lr=0.1, total_steps=4, cycle_momentum=False)
        TASK.loss(model, TASK.collate(TASK.train[:3])).mean().backward()
        both.step(batch_ids=[0, 1, 2])
