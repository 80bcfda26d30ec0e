"""A loop on accelerate, traced: the same bits, every step proved, the scores of a plain loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="needs accelerate: make test-integrations")

from accelerate import Accelerator, skip_first_batches
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from replay import Replay, Task
from tracer import TracingOptimizer, open_log
from tracer.errors import OutputExistsError, TracingError
from tracer.integrations.accelerate import trace

DRAW = torch.Generator().manual_seed(0)
DATA = [{"words": torch.randint(0, 9, (6,), generator=DRAW), "count": 1 + k % 5} for k in range(22)]


def collate(examples):
    labels = torch.full((len(examples), 6), -100)
    for row, example in enumerate(examples):
        labels[row, : example["count"]] = example["words"][: example["count"]] % 3
    return {"words": torch.stack([e["words"] for e in examples]), "labels": labels}


def rows(examples):
    """As tuples; each example counts once."""
    batch = collate(examples)
    return batch["words"], batch["labels"][:, 0]


def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(9, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))


def token_losses(model, batch):
    labels = batch["labels"]
    each = F.cross_entropy(model(batch["words"]).transpose(1, 2), labels, reduction="none")
    return each.sum(1) / (labels != -100).sum(1)


def row_losses(model, batch):
    return F.cross_entropy(model(batch[0])[:, 0], batch[1], reduction="none")


def half_losses(model, batch):
    with torch.autocast("cpu", torch.bfloat16, enabled=model[0].weight.dtype == torch.float32):
        found = model(batch[0])[:, 0]
    found = found.float() if found.dtype == torch.bfloat16 else found
    return F.cross_entropy(found, batch[1], reduction="none")


def token_mean(model, batch):
    return F.cross_entropy(model(batch["words"]).transpose(1, 2), batch["labels"])


def row_mean(model, batch):
    return F.cross_entropy(model(batch[0])[:, 0], batch[1])


TOKENS = Task(build, token_losses, DATA, DATA, collate=collate)
ROWS = Task(build, row_losses, DATA, DATA, collate=rows)
HALVES = Task(build, half_losses, DATA, DATA, collate=rows)


@dataclass
class Run:
    """One program: what it is given, and how it is traced."""

    task: Task = ROWS
    loss: Any = row_mean
    settings: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    how: dict = field(default_factory=dict)
    clip: float | None = 0.05
    before: bool = False  # traced before it is prepared
    save: Any = None  # (folder, step after which to save)
    stop: int | None = None  # step after which it ends
    resume: Any = None  # folder, epoch, batches to skip

    def __call__(self, log=None):
        for state in (AcceleratorState, GradientState):
            state._reset_state()
        accelerator = Accelerator(cpu=True, **self.settings)
        model, data = self.task.model(), self.task.train
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        known = {"batch_size": 4, "shuffle": True, "collate_fn": self.task.collate}
        loader = DataLoader(data, **{**known, **self.data})
        given = accelerator, model, optimizer, loader
        torch.manual_seed(3)
        self.tracing = (
            trace(*given, log, task=self.task, **self.how) if log and self.before else None
        )
        if self.tracing:
            optimizer = self.tracing.optimizer
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
        if self.resume:
            accelerator.load_state(str(self.resume[0]))
        if log and not self.before:
            given = accelerator, model, optimizer, loader
            self.tracing = trace(*given, log, task=self.task, **self.how)
        self.loop(accelerator, model, optimizer, loader, schedule)
        accelerator.end_training()
        return accelerator.unwrap_model(model)

    def loop(self, accelerator, model, optimizer, loader, schedule):
        steps, (_, first, skipped) = 0, self.resume or (None, 0, 0)
        for epoch in range(first, 2):
            if self.tracing:
                self.tracing.optimizer.epoch = epoch
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            left = skip_first_batches(loader, skipped) if epoch == first and skipped else loader
            for batch in left:
                with accelerator.accumulate(model):
                    accelerator.backward(self.loss(model, batch))
                    if accelerator.sync_gradients and self.clip:
                        accelerator.clip_grad_norm_(model.parameters(), self.clip)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                steps += accelerator.sync_gradients
                if self.save and accelerator.sync_gradients and steps == self.save[1]:
                    accelerator.save_state(str(self.save[0]))
                if steps == self.stop:
                    return


def same_bits(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


FOURS = {"gradient_accumulation_steps": 4}
SEEDED = DataLoaderConfiguration(use_seedable_sampler=True)
CASES = {
    "rows": Run(),
    "rows, prepared after": Run(before=True),
    "accumulates, the last group is short": Run(settings=FOURS),
    "accumulates, prepared after": Run(settings=FOURS, before=True),
    "means over tokens": Run(TOKENS, token_mean, FOURS, clip=None),
    "bf16": Run(HALVES, settings={"mixed_precision": "bf16"}),
    "a seedable sampler, workers": Run(
        settings={"dataloader_config": SEEDED}, data={"num_workers": 2}
    ),
    "batches": Run(how={"record": "batches"}),
    "sparse log": Run(how={"snapshot_every": 3}, before=True),
}


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_the_same_bits_and_every_step_is_proved(tmp_path, run):
    plain = run()
    found = run(tmp_path / "run.h5")
    assert same_bits(plain, found)
    replay = Replay(tmp_path / "run.h5", run.task)
    verified = replay.verify(progress=False)
    assert verified.steps == range(len(replay.log))
    assert not verified.scaled_outside
    assert {step.epoch for step in replay.log.steps()} == {0, 1}
    ids = [i for t in range(len(replay.log)) for i in replay.log.batch_ids(t)]
    assert sorted(ids) == sorted([*range(22), *range(22)])


def test_scores_are_those_of_a_plain_loop(tmp_path):
    Run(TOKENS, token_mean, FOURS)(tmp_path / "accelerate.h5")
    with open_log(tmp_path / "accelerate.h5") as log:
        steps = [step.micro_batches for step in log.steps()]
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with TracingOptimizer(optimizer, model, tmp_path / "loop.h5") as wrapped:
        schedule = torch.optim.lr_scheduler.StepLR(wrapped, 3)
        for parts in steps:
            for part in parts:
                torch.set_rng_state(part.random_state.cpu)  # of the dropout
                batch = collate([DATA[i] for i in part.ids])
                counts = (batch["labels"] != -100).sum(1)
                wrapped.observe(part.ids, counts / counts.sum() / 4)
                ((counts * token_losses(model, batch)).sum() / counts.sum() / 4).backward()
            wrapped.clip_grad_norm_(0.05)
            wrapped.step()
            wrapped.zero_grad()
            schedule.step()
    ours, theirs = (
        Replay(tmp_path / name, TOKENS).influence([0, 3], progress=False)
        for name in ("accelerate.h5", "loop.h5")
    )
    for method in ours.scores:
        scale = np.abs(theirs.scores[method]).max()
        assert np.allclose(ours.scores[method], theirs.scores[method], rtol=0, atol=1e-4 * scale)
        assert scale


@pytest.mark.parametrize("sparse", [1, 4])
def test_a_run_goes_on_from_a_checkpoint(tmp_path, sparse):
    log, folder, how = tmp_path / "run.h5", tmp_path / "three", {"snapshot_every": sparse}
    Run(how=how, save=(folder, 3), stop=5)(log)
    going_on = Run(how={**how, "resume": folder}, resume=(folder, 0, 3))
    plain = going_on()
    again = Run(how={**how, "resume": folder}, resume=(folder, 0, 3), stop=2)
    again(log)  # stopped again, before it saves
    found = going_on(log)
    assert same_bits(plain, found)
    replay = Replay(log, ROWS)
    assert replay.verify(progress=False).steps == range(12)
    assert [step.epoch for step in replay.log.steps()] == [0] * 6 + [1] * 6


def test_a_checkpoint_of_another_run_or_step(tmp_path):
    def going_on(log, folder, loaded=None, *, before=False):
        Run(how={"resume": folder}, resume=(loaded or folder, 0, 3), before=before)(log)

    run, other, one, two = (tmp_path / name for name in ("run.h5", "other.h5", "one", "two"))
    Run(save=(one, 3))(run)
    Run(save=(two, 2), data={"shuffle": False})(other)
    with pytest.raises(TracingError, match=r"is at step 3 and there is no log .*none.h5"):
        going_on(tmp_path / "none.h5", one)
    with pytest.raises(TracingError, match=r"no full state there; .* the steps 0, 2, 12\.\n1\. "):
        going_on(other, one)
    with pytest.raises(TracingError, match=r"not of one run: .*\n1.*\n2\. .*, without resume=, wi"):
        going_on(run, one, two)
    with pytest.raises(
        TracingError, match=r"resume= needs what .*\n1. Call .* after accelerator.l"
    ):
        going_on(run, one, before=True)
    with pytest.raises(TracingError, match=r"has no tracin.json, so .*\n1. Give the folder"):
        going_on(run, tmp_path, one)
    with pytest.raises(OutputExistsError, match=r"run.h5 exists.\n.*\n2. .*: trace\(..., resume=F"):
        Run()(run)


def test_what_is_traced_is_left_as_it_was(tmp_path):
    AcceleratorState._reset_state()
    accelerator, model = Accelerator(cpu=True), build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    raw = DataLoader(DATA, 4, collate_fn=rows)
    model, prepared, loader = accelerator.prepare(model, optimizer, raw)
    with trace(accelerator, model, optimizer, loader, tmp_path / "run.h5") as traced:
        for batch in loader:
            accelerator.backward(row_mean(model, batch))
            prepared.step()
            prepared.zero_grad()
        assert prepared.optimizer is traced
    assert prepared.optimizer is optimizer
    assert loader.dataset is raw.dataset is DATA
    assert not {"backward", "clip_grad_norm_", "end_training"} & set(vars(accelerator))
    kept = (tmp_path / "run.h5").read_bytes()
    for batch in loader:
        accelerator.backward(row_mean(model, batch))
        prepared.step()
    assert (tmp_path / "run.h5").read_bytes() == kept


@pytest.mark.filterwarnings("ignore:.*is closed without a step")
def test_refusals(tmp_path):
    AcceleratorState._reset_state()
    accelerator, model = Accelerator(cpu=True), build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    raw = DataLoader(DATA, 4, collate_fn=rows)
    with pytest.raises(TracingError, match=r"found int.\n1. .*\n2. If it is missing: pip install"):
        trace(3, model, optimizer, raw, tmp_path / "run.h5")
    there = accelerator.prepare_data_loader(raw, device_placement=False)
    with pytest.raises(TracingError, match=r"put_on_device=False"):
        trace(accelerator, model, optimizer, there, tmp_path / "run.h5")
    with pytest.raises(TracingError, match=r"got 1 IDs for 22 examples"):
        trace(accelerator, model, optimizer, raw, tmp_path / "run.h5", ids=[1])
    halves = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()][:2]
    another = r"an optimizer that trace\(\) was .*\n1\. Give .*\[first, second\].*\n2\. If an"
    first, _ = accelerator.prepare(*halves)
    for given in (first, [first], optimizer):
        with pytest.raises(TracingError, match=another):
            trace(accelerator, model, given, raw, tmp_path / "run.h5")
    accelerator.free_memory()
    assert "backward" not in vars(accelerator)
    assert not (tmp_path / "run.h5").exists()
    with trace(accelerator, model, optimizer, raw, tmp_path / "other.h5"):
        with pytest.raises(TracingError, match=r"still has its IDs: .*\n1. Give the loader to acc"):
            row_mean(model, next(iter(raw)))
        accelerator.prepare(raw)
