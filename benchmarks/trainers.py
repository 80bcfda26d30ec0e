"""What a trainer's integration costs beside the plain wrapper in the same trainer.

One process, one torch thread. Three candidates take turns: the trainer as it is; with the plain
wrapper, whose IDs a user hands on; with the integration. Each turn is a run of 60 micro-batches;
its time is the training thread's processor time from one micro-batch to the next, their median, so
that starts and other work on the machine do not count.
Times are medians of the turns; a ratio is taken in each turn, and its median is printed.

    python benchmarks/trainers.py [lightning] [accelerate] [transformers]
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tracer import TracingOptimizer, collate_with_ids, with_ids

TURNS, BATCHES, SIZE = 10, 60, 32
DRAW = torch.Generator().manual_seed(0)
DATA = [
    {"x": torch.randn(256, generator=DRAW), "labels": torch.tensor(k % 10)}
    for k in range(SIZE * BATCHES)
]
Times = list[float]


class Net(nn.Module):
    """Ten layers; a micro-batch takes some milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(10):
            layers += [nn.Linear(256, 256), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(256, 10))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss as transformers' models do."""
        return {"loss": F.cross_entropy(self.layers(x), labels)}


def collate(examples: list[Any]) -> dict[str, Tensor]:
    return {name: torch.stack([e[name] for e in examples]) for name in ("x", "labels")}


def loader(ids: bool) -> Any:
    how: dict[str, Any] = {"batch_size": SIZE, "shuffle": True}
    if ids:
        return DataLoader(with_ids(DATA), collate_fn=collate_with_ids(collate), **how)
    return DataLoader(DATA, collate_fn=collate, **how)  # type: ignore[arg-type]


def lightning(way: str, log: Path) -> Times:
    import lightning as L

    from tracer.integrations.lightning import trace

    ends: Times = []

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, number: int) -> Tensor:
            ends.append(time.thread_time())
            if way == "wrapper":
                ids, batch = batch
                self.trainer.optimizers[0].observe(ids)
            return self(batch)

        def forward(self, batch: Any) -> Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            if way == "wrapper":
                return TracingOptimizer(optimizer, self, log, snapshot_every=100)
            return optimizer

    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **dict.fromkeys(quiet, False))
    if way == "integration":
        trace(trainer, log, snapshot_every=100)
    module = Module()
    trainer.fit(module, loader(ids=way == "wrapper"))
    if way == "wrapper":
        trainer.optimizers[0].close()
    return ends


def accelerate(way: str, log: Path) -> Times:
    from accelerate import Accelerator

    from tracer.integrations.accelerate import trace

    ends: Times = []
    accelerator, model = Accelerator(cpu=True), Net()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if way == "wrapper":
        optimizer = TracingOptimizer(optimizer, model, log, snapshot_every=100)
    data = loader(ids=way == "wrapper")
    given = model, optimizer, data = accelerator.prepare(model, optimizer, data)
    tracing = trace(accelerator, *given, log, snapshot_every=100) if way == "integration" else None
    for batch in data:
        ends.append(time.thread_time())
        if way == "wrapper":
            ids, batch = batch
            optimizer.optimizer.observe(ids)
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    if way == "wrapper":
        optimizer.optimizer.close()
    if tracing is not None:
        tracing.close()
    return ends


def transformers(way: str, log: Path) -> Times:
    from transformers import Trainer, TrainingArguments

    from tracer.integrations.transformers import trace

    ends: Times = []
    model = Net()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if way == "wrapper":
        optimizer = TracingOptimizer(optimizer, model, log, snapshot_every=100)

    class Timed(Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            ends.append(time.thread_time())
            if way != "wrapper":
                return super().training_step(model, inputs, *rest)
            ids = inputs.pop("ids")
            loss = super().training_step(model, inputs, *rest)
            optimizer.observe(ids)
            return loss

    def both(pairs: list[Any]) -> Any:
        ids, batch = collate_with_ids(collate)(pairs)
        return {**batch, "ids": ids}

    settings = TrainingArguments(
        str(log.parent / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=SIZE,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = Timed(
        model,
        settings,
        train_dataset=with_ids(DATA) if way == "wrapper" else DATA,
        data_collator=both if way == "wrapper" else collate,
        optimizers=(optimizer, None),
    )
    if way == "integration":
        trace(trainer, log, snapshot_every=100)
    trainer.train()
    if way == "wrapper":
        optimizer.close()
    return ends


def compare(name: str, run: Callable[[str, Path], Times]) -> None:
    ways: dict[str, Times] = {"as it is": [], "wrapper": [], "integration": []}
    for turn in range(TURNS):
        # whoever comes after another is slower: each comes first as often
        for way, found in list(ways.items())[:: 1 if turn % 2 else -1]:
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.redirect_stderr(StringIO()),
                contextlib.redirect_stdout(StringIO()),
            ):
                torch.manual_seed(turn)
                ends = run(way, Path(folder) / "run.h5")
            found.append(statistics.median(b - a for a, b in pairwise(ends[9:])))
    bare, wrapper, ours = (1e3 * statistics.median(found) for found in ways.values())
    turns = zip(ways["integration"], ways["wrapper"], strict=True)
    ratio = statistics.median(a / b for a, b in turns)
    print(
        f"{name}: {bare:.2f} ms a micro-batch as it is, {wrapper:.2f} with the wrapper, "
        f"{ours:.2f} with the integration; over the wrapper {ratio:.3f}"
    )


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for run in (lightning, accelerate, transformers):
        name = run.__name__
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed; make test-integrations installs it")
        elif not sys.argv[1:] or name in sys.argv[1:]:
            compare(name, run)


if __name__ == "__main__":
    main()
