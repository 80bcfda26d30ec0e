"""Lightning's Trainer, traced: the same bits, every step proved, the scores of a plain loop."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("lightning", reason="needs lightning: make test-integrations")

from replay import Replay, Task
from tests.integrations import modules as m
from tracer import TracingOptimizer, open_log
from tracer.errors import OutputExistsError, TracingError
from tracer.integrations.lightning import trace

OURS = ("TracingWarning", "PrecisionWarning", "LogWarning", "InputWarning")
# Lightning warns of much, of few batches and workers for example; ours are errors
pytestmark = pytest.mark.filterwarnings(
    "ignore", *(f"error::tracer.errors.{kind}" for kind in OURS)
)
ACCUMULATES = {"accumulate_grad_batches": 4}
VALIDATES = {"val_check_interval": 2, "gradient_clip_val": 0.1}
CASES = {
    "usual": (m.Usual, VALIDATES, {}, {}),
    "accumulates, the last group is short": (m.Usual, {**ACCUMULATES, **VALIDATES}, {}, {}),
    "a sum": (m.Forward, ACCUMULATES, {"reduction": "sum"}, {}),
    "no loss for some batches": (m.Skipping, {}, {}, {}),
    "none for a group": (m.Skipping, {"accumulate_grad_batches": 2}, {}, {}),
    "manual": (m.Manual, {}, {}, {}),
    "a closure that runs again": (m.Newton, {}, {}, {}),
    "means over tokens": (m.Words, ACCUMULATES, {}, {}),
    "bf16": (m.Half, {"precision": "bf16-mixed"}, {}, {}),
    "float64": (m.Double, {"precision": "64-true"}, {}, {}),
    "bf16-true": (m.Double, {"precision": "bf16-true"}, {}, {}),
    "batches changed on their way": (m.Noisy, {}, {"record": "batches"}, {}),
    "workers": (m.Usual, {}, {}, {"num_workers": 2, "persistent_workers": True}),
    "sparse log": (m.Usual, {}, {"snapshot_every": 3}, {}),
}


@pytest.mark.parametrize(("kind", "settings", "how", "data"), CASES.values(), ids=CASES)
def test_the_same_bits_and_every_step_is_proved(tmp_path, kind, settings, how, data):
    task = m.task_of(kind)
    plain = m.fitted(task, tmp_path, data=data, **settings)
    found = m.fitted(task, tmp_path, tmp_path / "run.h5", how=how, data=data, **settings)
    assert m.same_bits(plain, found)
    run = Replay(tmp_path / "run.h5", task)
    verified = run.verify(progress=False)
    assert verified.steps == range(len(run.log))
    assert not verified.scaled_outside
    assert {step.epoch for step in run.log.steps()} == {0, 1}


def test_scores_are_those_of_a_plain_loop(tmp_path):
    task = m.task_of(m.Words)
    m.fitted(task, tmp_path, tmp_path / "trainer.h5", **ACCUMULATES, gradient_clip_val=0.05)
    with open_log(tmp_path / "trainer.h5") as log:
        steps = [(step.epoch, step.micro_batches) for step in log.steps()]
    module = task.model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with TracingOptimizer(optimizer, module.net, tmp_path / "loop.h5") as wrapped:
        for t, (epoch, parts) in enumerate(steps):
            wrapped.epoch = epoch
            for part in parts:
                torch.set_rng_state(part.random_state.cpu)  # of the dropout
                batch = task.collate([m.TOKENS[i] for i in part.ids])
                counts = (batch["labels"] != -100).sum(1)
                wrapped.observe(part.ids, counts / counts.sum() / 4)
                ((counts * module.losses(batch)).sum() / counts.sum() / 4).backward()
            wrapped.clip_grad_norm_(0.05)
            wrapped.step()
            wrapped.zero_grad()
            if t == 1:
                schedule.step()
    named = Task(lambda: task.model().net, _net_losses, m.TOKENS, m.TOKENS, collate=m.tokens)
    ours = Replay(tmp_path / "trainer.h5", task).influence([0, 3], progress=False)
    theirs = Replay(tmp_path / "loop.h5", named).influence([0, 3], progress=False)
    for method in ours.scores:
        scale = np.abs(theirs.scores[method]).max()
        assert np.allclose(ours.scores[method], theirs.scores[method], rtol=0, atol=1e-4 * scale)
        assert scale


def _net_losses(net, batch):
    return m.Words.losses(SimpleNamespace(net=net), batch)


class _Stops(m.L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            raise RuntimeError("stopped")


def checkpoints(every, *, stops=False):
    kept = m.L.pytorch.callbacks.ModelCheckpoint(every_n_train_steps=every, save_top_k=-1)
    return {"callbacks": [*([_Stops()] if stops else []), kept], "enable_checkpointing": True}


def cut(folder, log, every, **how):
    """Train until it is stopped after five steps; return the last checkpoint."""
    with pytest.raises(RuntimeError, match="stopped"):
        m.fitted(TASK, folder, log, how=how, seed=4, **checkpoints(every, stops=True))
    return max(folder.rglob("*.ckpt"), key=lambda path: int(path.stem.split("step=")[1]))


TASK = m.task_of(m.Usual)


@pytest.mark.parametrize("sparse", [1, 4])
@pytest.mark.parametrize("every", [2, 3])
def test_a_run_goes_on_from_the_trainers_checkpoint(tmp_path, sparse, every):
    log, how = tmp_path / "run.h5", {"snapshot_every": sparse}
    last = cut(tmp_path, log, every, **how)
    plain = m.fitted(TASK, tmp_path / "plain", resume=last, seed=5)
    found = m.fitted(TASK, tmp_path, log, how=how, resume=last, seed=5)
    assert m.same_bits(plain, found)
    run = Replay(log, TASK)
    assert len(run.log) == found.trainer.global_step  # 12, and 13 with Lightning 2.4
    assert run.verify(progress=False).steps == range(len(run.log))
    assert [step.epoch for step in run.log.steps()][:7] == [0] * 6 + [len(run.log) < 13]


def test_a_run_that_goes_on_where_an_epoch_ends_is_the_whole_one(tmp_path):
    task, in_order = m.task_of(m.Plain), {"data": {"shuffle": False}}
    whole = m.fitted(task, tmp_path, tmp_path / "whole.h5", **in_order)
    kept = m.L.pytorch.callbacks.ModelCheckpoint(save_last=True)
    once = {"max_epochs": 1, "callbacks": [kept], "enable_checkpointing": True}
    m.fitted(task, tmp_path, tmp_path / "cut.h5", **in_order, **once)
    found = m.fitted(task, tmp_path, tmp_path / "cut.h5", resume=kept.last_model_path, **in_order)
    assert m.same_bits(whole, found)
    with open_log(tmp_path / "cut.h5") as ours, open_log(tmp_path / "whole.h5") as theirs:
        assert [ours.batch_ids(t) for t in range(12)] == [theirs.batch_ids(t) for t in range(12)]


def test_a_checkpoint_of_another_run_or_step(tmp_path):
    def going_on(log, last):
        m.fitted(TASK, tmp_path, log, resume=last)

    last = cut(tmp_path / "one", tmp_path / "run.h5", 2)
    cut(tmp_path / "two", tmp_path / "other.h5", 3)
    m.fitted(TASK, tmp_path / "three", tmp_path / "different.h5", seed=9, **checkpoints(2))
    with pytest.raises(TracingError, match=r"is at step 4 and there is no log .*none.h5"):
        going_on(tmp_path / "none.h5", last)
    kept = (tmp_path / "other.h5").read_bytes()
    with pytest.raises(TracingError, match=r"no full state there; .* the steps 0, 3, 5\.\n1\. "):
        going_on(tmp_path / "other.h5", last)
    assert (tmp_path / "other.h5").read_bytes() == kept
    with pytest.raises(
        TracingError, match=r"not of one run: .*\n1.*\n2\. .*, without ckpt_path, with"
    ):
        going_on(tmp_path / "different.h5", last)
    with pytest.raises(
        OutputExistsError, match=r"run.h5 exists.\n.*\n2. .*: fit\(ckpt_path=\.\.\."
    ):
        m.fitted(TASK, tmp_path, tmp_path / "run.h5")


class _Own(DataLoader):
    def __iter__(self):
        return super().__iter__()


class _Iterating(m.Plain):
    def training_step(self, dataloader_iter):
        return self.losses(next(dataloader_iter)[0]).mean()


class _Bare(m.Plain):
    def configure_optimizers(self):
        return None


def test_what_the_trainer_does_is_said_by_name(tmp_path):
    values = {"gradient_clip_val": 1, "gradient_clip_algorithm": "value"}
    with pytest.raises(TracingError, match=r"clips each value .*\n1. Use gradient_clip_algorithm="):
        trace(m.trainer(tmp_path, **values), tmp_path / "run.h5")
    with pytest.raises(TracingError, match=r"strategy DDPStrategy, .*\n1. Train in one process"):
        trace(m.trainer(tmp_path, strategy="ddp"), tmp_path / "run.h5")


def several(task):
    return {"one": m.loader(task), "two": m.loader(task)}


LATER = {
    "several loaders": (m.Usual, several, {}, r"several loaders at once \(a dict\)"),
    "own iter": (m.Usual, lambda t: _Own(t.train, 4), {}, "a _Own with an __iter__ of its own"),
    "no batches": (m.Usual, lambda t: DataLoader(t.train, None), {}, r"batches \(batch_size=None"),
    "iterator": (_Iterating, m.loader, {}, "takes its batches itself"),
    "none": (_Bare, m.loader, {}, "has no optimizer"),
    "items": (m.Manual, m.loader, {"items": len}, "divides its loss by itself"),
    "IDs": (m.Usual, m.loader, {"ids": [1]}, "got 1 IDs for 22 examples"),
}


@pytest.mark.parametrize(("kind", "data", "how", "message"), LATER.values(), ids=LATER)
def test_what_is_known_when_it_fits_is_said_before_the_first_step(
    tmp_path, kind, data, how, message
):
    task, one = m.task_of(kind), m.trainer(tmp_path)
    trace(one, tmp_path / "run.h5", **how)
    with pytest.raises(TracingError, match=message):
        one.fit(task.model(), data(task))
    assert not (tmp_path / "run.h5").exists()
    assert not any(type(callback).__name__ == "Tracing" for callback in one.callbacks)


def test_what_is_no_trainer(tmp_path):
    with pytest.raises(TracingError, match=r"found int.\n.*\n2. If it is missing: pip install"):
        trace(3, tmp_path / "run.h5")


@pytest.mark.parametrize("package", m.PACKAGES)
def test_a_second_training_is_not_traced_and_a_loader_stays_what_it_is(tmp_path, package):
    lightning = import_module(package)
    module, data = m.usual(lightning)(), m.loader(TASK)
    monitor = lightning.pytorch if package == "lightning" else lightning
    monitor = monitor.callbacks.LearningRateMonitor()
    logger = import_module(f"{monitor.__module__.split('.callbacks')[0]}.loggers").CSVLogger(
        tmp_path
    )
    one = m.trainer(tmp_path, lightning, callbacks=[monitor], logger=logger, log_every_n_steps=1)
    trace(one, tmp_path / "run.h5", task=TASK)
    one.fit(module, data, data)  # also where it is the validation's
    kept = (tmp_path / "run.h5").read_bytes()
    assert type(one.optimizers[0]) is torch.optim.AdamW
    assert data.dataset is TASK.train
    names = {"process_dataloader", "training_step"}
    assert not names & set(vars(one.strategy))
    one.fit_loop.max_epochs = 3
    one.fit(module, data)
    assert one.global_step == 18
    assert (tmp_path / "run.h5").read_bytes() == kept
    Replay(tmp_path / "run.h5", TASK).verify(progress=False)
