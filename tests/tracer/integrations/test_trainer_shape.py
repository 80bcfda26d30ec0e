"""What has the shape of transformers' Trainer, without it: its loop, events and losses."""

from __future__ import annotations

import contextlib
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from replay import Replay, Task
from tracer import TracingOptimizer, open_log
from tracer.errors import TracingError
from tracer.integrations.carried_ids import carry_ids, in_mapping, taken_ids
from tracer.integrations.loss_weights import LossWeights, items_of, measured
from tracer.integrations.transformers import trace

DRAW = torch.Generator().manual_seed(0)
DATA = [
    {"x": torch.randn(4, 3, generator=DRAW), "labels": torch.tensor([0, 1, 2, -100][: 1 + k % 4])}
    for k in range(14)
]


def collate(examples):
    labels = torch.full((len(examples), 4), -100)
    for row, example in enumerate(examples):
        labels[row, : len(example["labels"])] = example["labels"]
    return {"x": torch.stack([e["x"] for e in examples]), "labels": labels}


def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 3))


def token_losses(model, batch):
    logits = model(batch["x"]).transpose(1, 2)
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def loss(model, batch):
    return token_losses(model, batch).sum(1) / (batch["labels"] != -100).sum(1).clamp(min=1)


TASK = Task(build, loss, DATA, DATA, collate=collate)


class Trainer:
    """The loop of transformers 5, as far as a tracer meets it.

    Args:
        by_all: Whether the model divides by the items of the whole step.
        by_batches: Whether the loop divides by the number of micro-batches.
        surplus: By how many it miscounts the items.
    """

    def __init__(self, *, by_all, by_batches, surplus=0, k=2, stop=None):
        self.by_all, self.by_batches, self.surplus, self.k, self.stop = (
            *(by_all, by_batches, surplus),
            *(k, stop),
        )
        self.model = self.model_wrapped = build()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.args, self.callbacks = SimpleNamespace(world_size=1, n_gpu=0), []
        self.accelerator = SimpleNamespace(clip_grad_norm_=nn.utils.clip_grad_norm_, scaler=None)
        self.data = DATA

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def remove_callback(self, callback):
        self.callbacks.remove(callback)

    def get_train_dataloader(self):
        order = torch.Generator().manual_seed(5)
        return DataLoader(self.data, 3, shuffle=True, collate_fn=collate, generator=order)

    def _prepare_inputs(self, inputs):
        return dict(inputs)

    def compute_loss_context_manager(self):
        return contextlib.nullcontext()

    def compute_loss(self, model, inputs, num_items_in_batch=None):
        losses = token_losses(model, inputs)
        here = (inputs["labels"] != -100).sum()
        return losses.sum() / (num_items_in_batch if self.by_all else here)

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        found = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch)
        found = found / self.current_gradient_accumulation_steps if self.by_batches else found
        found.backward()
        return found.detach()

    def train(self):
        loader = self.get_train_dataloader()
        state = SimpleNamespace(global_step=0, max_steps=6, epoch=0)
        torch.manual_seed(2)
        self._tell("on_train_begin", state)
        for epoch in range(2):
            self._tell("on_epoch_begin", state)
            batches = list(loader)
            for start in range(0, len(batches), self.k):
                some = batches[start : start + self.k]
                self.current_gradient_accumulation_steps = len(some)
                total = sum((b["labels"] != -100).sum() for b in some) + self.surplus
                for batch in some:
                    self.training_step(self.model, batch, total)
                self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.model.zero_grad()
                state.global_step += 1
                if state.global_step == self.stop:
                    raise KeyboardInterrupt
            state.epoch = epoch + 1
        self._tell("on_train_end", state)
        return self.model

    def _tell(self, event, state):
        for callback in self.callbacks:
            getattr(callback, event)(self.args, state, None, model=self.model)


WAYS = {
    "by all": {"by_all": True, "by_batches": False},
    "by all, miscounted": {"by_all": True, "by_batches": False, "surplus": 3},
    "of the micro-batch, by batches": {"by_all": False, "by_batches": True},
    "of the micro-batch, not by batches": {"by_all": False, "by_batches": False},
    "both": {"by_all": True, "by_batches": True},
    "one micro-batch": {"by_all": True, "by_batches": False, "k": 1},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_weights_are_what_is_divided_by(tmp_path, way):
    plain, traced = Trainer(**way), Trainer(**way)
    trace(traced, tmp_path / "run.h5", task=TASK)
    pairs = zip(plain.train().parameters(), traced.train().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    run = Replay(tmp_path / "run.h5", TASK)
    assert not run.verify(progress=False).scaled_outside
    assert {step.epoch for step in run.log.steps()} == {0, 1}
    ids = [i for t in range(len(run.log)) for i in run.log.batch_ids(t)]
    assert sorted(ids) == sorted([*range(14), *range(14)])
    assert type(traced.optimizer) is torch.optim.SGD
    assert not traced.callbacks


def test_an_exception_ends_the_log_and_leaves_the_trainer_as_it_was(tmp_path):
    one = Trainer(by_all=True, by_batches=False, stop=4)
    trace(one, tmp_path / "run.h5", task=TASK)
    with pytest.raises(KeyboardInterrupt):
        one.train()
    assert not {"train", "training_step", "get_train_dataloader"} & set(vars(one))
    assert one.accelerator.clip_grad_norm_ is nn.utils.clip_grad_norm_
    assert not isinstance(one.optimizer, TracingOptimizer)
    with open_log(tmp_path / "run.h5") as log:
        assert len(log) == 4


class _Counted(list):
    epochs = ()

    def set_epoch(self, epoch):
        self.epochs = (*self.epochs, epoch)

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_a_data_set_stays_what_it_is():
    data = _Counted(DATA)
    loader = DataLoader(data, 3, collate_fn=collate)
    carry_ids(loader, [f"a{k}" for k in range(14)], in_mapping)
    loader.dataset.set_epoch(3)
    assert data.epochs == (3,)
    assert not hasattr(loader.dataset, "shuffle")
    copied = pickle.loads(pickle.dumps(loader.dataset))
    assert copied[2][0] == "a2"
    batches = list(loader)
    assert torch.equal(batches[1]["x"][0], DATA[3]["x"])
    assert [i for batch in batches for i in taken_ids(batch)] == [f"a{k}" for k in range(14)]
    with pytest.raises(TracingError, match=r"got 2 IDs for 14 examples"):
        carry_ids(DataLoader(data, 3), ["a", "b"])


class _Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


def test_refusals(tmp_path):
    def refused(message, *, begins=False, **found):
        one = Trainer(by_all=True, by_batches=False)
        for name, value in found.items():
            setattr(one, name, value)
        with pytest.raises(TracingError, match=message):
            trace(one, tmp_path / "run.h5")
            if begins:
                one.train()
        assert not (tmp_path / "run.h5").exists()

    refused(r"uses DeepSpeed, which cannot be traced.\n1. Train in one", is_deepspeed_enabled=True)
    refused("uses FSDP", is_fsdp_enabled=True)
    refused("runs on 2 processes", args=SimpleNamespace(world_size=2))
    refused(r"over 2 GPUs \(DataParallel\)", args=SimpleNamespace(n_gpu=2))
    refused("packs sequences", args=SimpleNamespace(packing=True))
    refused("GradScaler", accelerator=SimpleNamespace(scaler=object()))
    stream = DataLoader(_Stream(), 3, collate_fn=collate)
    refused("a stream", begins=True, get_train_dataloader=lambda: stream)


def test_a_loss_that_nothing_explains():
    with pytest.raises(TracingError, match=r"is 1 and 0.3 when .* 3.5 times .*\n1. Return"):
        measured(torch.tensor(1.0), lambda total: torch.tensor(0.3), 10, 2)
    with pytest.raises(TracingError, match=r"is NaN, so .*\n1\. See that a label"):
        measured(torch.tensor(float("nan")), lambda total: torch.tensor(1.0), 10, 2)


def test_items():
    labels = torch.tensor([[1, 2, -100], [-100, 3, 4]])
    assert items_of(nn.Identity(), {"labels": labels}, 2).tolist() == [2, 2]
    assert items_of(nn.Identity(), {"labels": labels[:, 0]}, 2).tolist() == [1, 0]
    assert items_of(nn.Identity(), {"labels": labels.float()}, 2).tolist() == [1, 1]
    assert items_of(nn.Identity(), {"shift_labels": labels[:, 1:]}, 2).tolist() == [1, 2]
    weights = LossWeights(by_all=True, by_batches=False)
    assert weights.of(torch.tensor([2, 1]), torch.tensor(4.0), 2).tolist() == [0.5, 0.25]
