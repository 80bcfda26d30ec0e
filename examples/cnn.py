"""Train a small CNN with Lightning, traced by one line, on scikit-learn's handwritten digits.

    python -m examples.cnn        # after pip install '.[integrations,examples]'

Validation, clipping and accumulation are Lightning's. Every fifth image is for the test, and IDs
are the numbers of the images.
"""

from __future__ import annotations

from pathlib import Path

import click
import lightning
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from examples import digits, gallery
from replay import Influence, Replay, Task, plots, report
from tracer.integrations.lightning import trace

Batch = tuple[Tensor, Tensor, Tensor]


class Reader(lightning.LightningModule):
    """Two convolutions, BatchNorm, dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
            *(nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10)),
        )

    def losses(self, batch: Batch) -> Tensor:
        """Return each image's cross-entropy in nats, ``(b,)``."""
        pixels, labels, _ = batch
        return F.cross_entropy(self.net(pixels.view(-1, 1, 8, 8)), labels, reduction="none")

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """Return the mean loss of a micro-batch."""
        return self.losses(batch).mean()

    def validation_step(self, batch: Batch, number: int) -> None:
        """Note the loss of some test images."""
        self.log("loss", self.losses(batch).mean())

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW and a learning rate that falls by epochs."""
        adamw = torch.optim.AdamW(self.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, self.trainer.max_epochs)
        return {"optimizer": adamw, "lr_scheduler": schedule}


def model() -> Reader:
    """Return the CNN as the run begins."""
    torch.manual_seed(0)
    return Reader()


def cnn_task(every: int) -> Task:
    """Return the task, of every so-many-th image."""
    sides = (dict(list(side.items())[::every]) for side in (digits.task.train, digits.task.test))
    return Task(model, lambda module, batch: module.losses(batch), *sides, show=digits.show)


def train(task: Task, log: Path, *, epochs: int) -> Reader:
    """Train with Lightning, traced; return the module."""
    trainer = lightning.Trainer(
        default_root_dir=log.parent,
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, names = task.model(), list(task.train)
    loaders = (
        DataLoader(list(task.train.values()), batch_size=16, shuffle=True),
        DataLoader(list(task.test.values()), batch_size=64),
    )
    trace(trainer, log, task=task, ids=names, snapshot_every=1, overwrite=True)
    trainer.fit(module, *loaders)
    return module.eval()


@torch.no_grad()
def judged(task: Task, module: Reader) -> tuple[list[int], float]:
    """Return the test images by their loss, the largest first, and the share that is right."""
    names = list(task.test)
    batch = task.collate([task.test[name] for name in names])
    order = module.losses(batch).argsort(descending=True)
    right = module.net(batch[0].view(-1, 1, 8, 8)).argmax(1) == batch[1]
    return [names[k] for k in order.tolist()], float(right.float().mean())


def table_of(influence: Influence) -> str:
    """Return what each test image's terms add up to."""
    head = ["test image", "measured", "`ideal`, data", "buffers", "`tracin`, data", "regulariser"]
    ideal, tracin = (influence.completeness[name] for name in ("ideal", "tracin"))
    terms = (ideal["measured"], ideal["data"], ideal["buffers"], tracin["data"])
    columns = [*terms, tracin["regulariser"]]
    rows = [
        [f"`{name}`, a {digits.images[int(name)][1]}", *(float(c[j]) for c in columns)]
        for j, name in enumerate(influence.test_ids)
    ]
    return gallery.table(head, rows)


def figures(task: Task, influence: Influence) -> dict[str, Figure]:
    """Return the page's figures: what adds up, and the hardest image's strongest examples."""
    hardest = influence.test_ids[0]
    return {
        "cnn-adds-up.png": plots.completeness(influence),
        "cnn-strongest.png": plots.ranking(influence, hardest, task=task),
    }


@click.command()
@gallery.places("cnn")
@click.option("--epochs", default=4, show_default=True)
@click.option("--tests", default=3, show_default=True, help="Test images, the hardest first.")
@click.option("--every", default=2, show_default=True, help="Use every so-many-th image.")
def main(out: Path, page: Path | None, epochs: int, tests: int, every: int) -> None:
    """Train, prove every step, replay the hardest test images, and write the page."""
    task, log = cnn_task(every), out / "logs" / "cnn.h5"
    log.parent.mkdir(parents=True, exist_ok=True)
    hardest, right = judged(task, train(task, log, epochs=epochs))
    run = Replay(log, task)
    proved = run.verify()
    influence = run.influence(hardest[:tests], methods=("tracin", "ideal"))
    study = report.Study(influence, task=task, run=report.run_facts(influence))
    report.write(study, out / "cnn.html", overwrite=True)
    text = (
        f"{len(task.train):,} training and {len(task.test):,} test images, {epochs} epochs, "
        f"{len(run.log):,} steps of two micro-batches; {right:.1%} of the test images are read "
        f"rightly. All {len(proved.steps):,} steps of Lightning's loop reproduce.\n\n"
        f"The {len(influence.test_ids)} test images with the largest loss, in nats:\n\n"
        f"{table_of(influence)}\n"
        "![The terms that add up to the measured drop](cnn-adds-up.png)\n\n"
        "![The strongest examples of the hardest test image](cnn-strongest.png)"
    )
    gallery.publish(page or out, "cnn", text, figures(task, influence))


if __name__ == "__main__":
    main()
