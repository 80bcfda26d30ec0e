"""Small modules, data and tasks for Lightning's Trainer, of either of its packages."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from replay import Task
from tracer.integrations.lightning import trace

PACKAGES = [name for name in ("lightning", "pytorch_lightning") if find_spec(name)]
L = import_module(PACKAGES[0])
DRAW = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(22, 5, generator=DRAW), torch.randint(0, 3, (22,), generator=DRAW))
TOKENS = [
    {"words": torch.randint(0, 9, (6,), generator=DRAW), "count": 1 + k % 5} for k in range(22)
]


def tokens(examples):
    labels = torch.full((len(examples), 6), -100)
    for row, example in enumerate(examples):
        labels[row, : example["count"]] = example["words"][: example["count"]] % 3
    return {"words": torch.stack([e["words"] for e in examples]), "labels": labels}


def usual(lightning):
    class Usual(lightning.LightningModule):
        """Calls a part of itself, as most modules do; with buffers and dropout."""

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                *(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
            )

        def losses(self, batch):
            return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

        def training_step(self, batch, number):
            loss = self.losses(batch).mean()
            self.log("train", loss)
            return {"loss": loss, "rows": len(batch[0])}

        def validation_step(self, batch, number):
            self.log("value", self.losses(batch).mean())

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    return Usual


Usual = usual(L)


class Plain(Usual):
    """Without anything random nor buffers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


class Forward(Usual):
    """Calls itself, and takes a sum."""

    def forward(self, rows):
        return self.net(rows)

    def training_step(self, batch, number):
        return F.cross_entropy(self(batch[0]), batch[1], reduction="sum")


class Skipping(Plain):
    """Has no loss for some batches."""

    def training_step(self, batch, number):
        return None if number in (1, 4) else super().training_step(batch, number)["loss"]


class Manual(Usual):
    """Optimizes by itself, two batches a step; clips, too."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, number):
        optimizer = self.optimizers()
        self.manual_backward(self.losses(batch).mean() / 2)
        if number % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()


class Newton(Plain):
    """Its closure runs several times a step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Words(Usual):
    """Its loss is a mean over the tokens of the batch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(9, 4), nn.Dropout(0.1), nn.Linear(4, 3))

    def losses(self, batch):
        labels = batch["labels"]
        logits = self.net(batch["words"]).transpose(1, 2)
        return F.cross_entropy(logits, labels, reduction="none").sum(1) / (labels != -100).sum(1)

    def training_step(self, batch, number):
        logits = self.net(batch["words"]).transpose(1, 2)
        return F.cross_entropy(logits, batch["labels"])


class Half(Plain):
    """In bfloat16 as the Trainer has it, for a task, too, whose values are in float64."""

    def losses(self, batch):
        half = self.net[0].weight.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = self.net(batch[0])
        return F.cross_entropy(found.float() if half else found, batch[1], reduction="none")


class Double(Plain):
    """In the precision that its parameters have."""

    def losses(self, batch):
        found = self.net(batch[0].to(self.net[0].weight.dtype))
        return F.cross_entropy(found, batch[1], reduction="none")


class Noisy(Plain):
    """Changes its batches at random on their way."""

    def on_after_batch_transfer(self, batch, place):
        if not self.trainer.training:
            return batch
        return [batch[0] + torch.randn(batch[0].shape), batch[1]]


def task_of(kind):
    def build():
        torch.manual_seed(1)
        return kind()

    data, collate = (TOKENS, {"collate": tokens}) if kind is Words else (DATA, {})
    return Task(build, lambda model, batch: model.losses(batch), data, data, **collate)


def trainer(folder, lightning=L, **settings):
    known = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 1,
        "default_root_dir": folder,
    }
    return lightning.Trainer(**{**known, **settings})


def loader(task, *, seed=None, **settings):
    order = None if seed is None else torch.Generator().manual_seed(seed)
    how = {"batch_size": 4, "shuffle": True, "collate_fn": task.collate, "generator": order}
    return DataLoader(task.train, **{**how, **settings})


def fitted(task, folder, log=None, *, how=None, data=None, resume=None, seed=None, **settings):
    """Train and return the module; with a log, traced."""
    module, one = task.model(), trainer(folder, **settings)
    torch.manual_seed(2)
    if log is not None:
        trace(one, log, task=task, **(how or {}))
    held = loader(task, shuffle=False)
    one.fit(module, loader(task, seed=seed, **(data or {})), held, ckpt_path=resume)
    return module


def same_bits(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
