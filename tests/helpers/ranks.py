"""Runs of two ranks, each a process of its own; ``launch`` starts them, this file is their program.

Every run is made twice from the same seeds, traced and not; ``what.json`` says what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from replay import Task
from tests.helpers.mixed import SGD_ADAM, Plain
from tests.helpers.places import ROOT
from tests.helpers.rules import O
from tracer import TracingOptimizer, with_ids

SIZE, STEPS = 24, 5
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(SIZE, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(SIZE, 1, generator=GENERATOR, dtype=torch.float64)


class Synchronised(nn.SyncBatchNorm):
    """SyncBatchNorm on CPUs, where torch has none: sums over the ranks by differentiable ones.

    DistributedDataParallel takes none there either, so layers become one afterwards.
    """

    def forward(self, x):
        """Normalise by the mean and the variance of what all ranks have."""
        from torch.distributed.nn.functional import all_reduce

        if not self.training:
            return super().forward(x)
        count = all_reduce(torch.tensor(float(len(x)), dtype=x.dtype))
        mean = all_reduce(x.sum(0)) / count
        variance = all_reduce(((x - mean) ** 2).sum(0)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


class Unused(nn.Module):
    """A model of which each rank uses another branch in odd steps."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1), nn.Linear(6, 1)])

    def forward(self, x):
        """Use the branch that the first example asks for; the last one is never used."""
        return self.branches[int(x[0, 0] > 0)](x)


class Looking(nn.Module):
    """A model whose rows are looked up: it gives sparse gradients."""

    def __init__(self):
        super().__init__()
        self.rows, self.last = nn.Embedding(8, 3, sparse=True), nn.Linear(3, 1)

    def forward(self, x):
        """Look up three rows of each example."""
        return self.last(torch.tanh(self.rows((x[:, :3] * 3).long() % 8).sum(1)))


class Shaken(Dataset):
    """Examples that are drawn at random."""

    def __len__(self):
        return SIZE

    def __getitem__(self, k):
        return {"x": X[k] + 0.1 * torch.randn(6, dtype=X.dtype), "y": Y[k]}


class Sparse:
    """SparseAdam of what is looked up, and Adam of the rest."""

    def made(self, parameters):
        """Return both."""
        rows, *rest = parameters
        return Plain([O.SparseAdam([rows], lr=0.05), O.Adam(rest, lr=0.02)])


class Turns:
    """Two optimizers, by name, that take turns."""

    def made(self, parameters):
        """Return both."""
        known = list(parameters)
        return {"first": O.SGD(known[:2], lr=0.1, momentum=0.9), "last": O.Adam(known[2:], lr=0.02)}


def sequential(*layers):
    """Return a builder of a model in float64."""
    return lambda: nn.Sequential(*(layer() for layer in layers)).double()


LINEAR = sequential(lambda: nn.Linear(6, 5), nn.Tanh, lambda: nn.Linear(5, 1))
NORMED = sequential(
    lambda: nn.Linear(6, 5), lambda: nn.BatchNorm1d(5), nn.Tanh, lambda: nn.Linear(5, 1)
)
DROPPING = sequential(
    lambda: nn.Linear(6, 5), lambda: nn.Dropout(0.4), nn.Tanh, lambda: nn.Linear(5, 1)
)
SPECTRAL = sequential(
    lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)), lambda: nn.Linear(5, 1)
)


@dataclass(frozen=True)
class Story:
    """One run.

    Attributes:
        model: Builds its model.
        batches: Of each step, of each rank, the micro-batches as lists of IDs; None is a loader's.
        spread: For DistributedDataParallel.
        traced: For the wrapper.
        rule: The optimizer's class, and its settings; or those of two.
        clip: Largest norm.
        sync: Whether every backward pass is synchronised, also those that accumulate.
        weights: Whether weights are announced.
        drop_last: Whether the sampler drops the last example, and gives none twice.
        couples: Whether BatchNorm layers become those of ``Synchronised``.
        shaken: Whether examples are drawn at random.
    """

    model: object = LINEAR
    batches: object = None
    spread: dict = field(default_factory=dict)
    traced: dict = field(default_factory=dict)
    rule: object = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    clip: float = 0.0
    sync: bool = False
    weights: bool = False
    couples: bool = False
    drop_last: bool = False
    shaken: bool = False

    def optimizer(self, parameters):
        """Return a new optimizer."""
        if not isinstance(self.rule, tuple):
            return self.rule.made(parameters)
        kind, settings = self.rule
        return kind(parameters, **settings)


def even(t, rank, k=2, b=3):
    """Return k micro-batches of b examples."""
    start = t * 5 + rank * 11
    return [[(start + j * b + i) % SIZE for i in range(b)] for j in range(k)]


def uneven(t, rank):
    """Return batches of other sizes, and other numbers of them, on each rank."""
    return even(t, rank, k=1 + (t + rank) % 2, b=2 + rank)


def once(t, rank):
    """Return one batch each; in the last step the second rank's is smaller, and one ID is twice."""
    return even(t, rank, k=1, b=4 - (rank and t == STEPS - 1))


STORIES = {
    "uneven": Story(batches=once),
    "sampler": Story(DROPPING),
    "drop-last": Story(DROPPING, drop_last=True),
    "dropping": Story(DROPPING, once, traced={"snapshot_every": 2}),
    "accumulated": Story(NORMED, even),
    "counts": Story(batches=uneven, spread={"gradient_as_bucket_view": True}),
    "synced": Story(NORMED, even, sync=True),
    "own-buffers": Story(NORMED, once, {"broadcast_buffers": False}),
    "spectral": Story(SPECTRAL, even),
    "static": Story(NORMED, once, {"static_graph": True}),
    "unused": Story(lambda: Unused().double(), once, {"find_unused_parameters": True}),
    "clipped": Story(batches=once, clip=0.05),
    "weights": Story(batches=even, weights=True, rule=(torch.optim.AdamW, {"lr": 0.01})),
    "sum": Story(batches=once, traced={"reduction": "sum"}, rule=(torch.optim.SGD, {"lr": 0.01})),
    "coupled": Story(NORMED, even, couples=True),
    "batches": Story(batches=once, traced={"record": "batches"}),
    "several": Story(NORMED, even, clip=0.05, rule=SGD_ADAM),
    "uneven-several": Story(batches=uneven, rule=SGD_ADAM, traced={"snapshot_every": 2}),
    "sparse": Story(lambda: Looking().double(), even, rule=Sparse()),
    "turns": Story(DROPPING, even, rule=Turns()),
    "seeds": Story(batches=even, traced={"record": "seeds"}, shaken=True),
}


def task(story):
    """Return the task of a story."""
    examples = [{"x": X[k], "y": Y[k]} for k in range(SIZE)]
    given = {"first": losses, "last": sizes} if isinstance(story.rule, Turns) else losses
    train = Shaken() if story.shaken else examples
    return Task(story.model, given, train, examples[:4], measure=losses)


def losses(model, batch):
    """Return squared errors."""
    return (model(batch["x"]) - batch["y"]).square().sum(1)


def sizes(model, batch):
    """Return the losses of those steps that the second of two takes."""
    return (model(batch["x"]) - 2 * batch["y"]).cosh().sum(1)


def batches_of(story, rank):
    """Yield the micro-batches of each step of one rank."""
    if story.batches is not None:
        yield from (story.batches(t, rank) for t in range(STEPS))
        return
    data = with_ids([(X[k], Y[k]) for k in range(SIZE - 3)])  # 21: the sampler repeats one
    sampler = DistributedSampler(data, 2, rank, seed=3, drop_last=story.drop_last)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        yield from ([ids.tolist()] for ids, _ in DataLoader(data, batch_size=4, sampler=sampler))


def take(story, ddp, optimizer, own, data, t):
    """Take one step of micro-batches; announce them if the optimizer is a wrapper."""
    traced, loss_of = isinstance(optimizer, TracingOptimizer), losses
    ddp.zero_grad()
    if isinstance(story.rule, Turns):
        optimizer, loss_of = optimizer["last" if t % 2 else "first"], sizes if t % 2 else losses
    optimizer.zero_grad()
    for j, ids in enumerate(own):
        with ExitStack() as stack:
            if j < len(own) - 1 and not story.sync:
                stack.enter_context(ddp.no_sync())
            batch = {"x": X[ids], "y": Y[ids]} if data is None else collated(data, ids)
            found = loss_of(ddp, batch)
            c = torch.arange(1.0, len(ids) + 1, dtype=torch.float64) / 7
            summed = found.sum() if story.traced.get("reduction") else found.mean() / len(own)
            loss = (c * found).sum() if story.weights else summed
            if traced:
                recorded = batch if story.traced.get("record") == "batches" else None
                optimizer.observe(ids, weights=c if story.weights else None, batch=recorded)
            loss.backward()
    if story.clip:
        clip = optimizer.clip_grad_norm_ if traced else None
        clip(story.clip) if clip else nn.utils.clip_grad_norm_(ddp.parameters(), story.clip)
    optimizer.step()


def collated(data, ids):
    """Return the examples of an epoch in one batch."""
    return default_collate([data[k][1] for k in ids])


def begun(story, rank):
    """Return a new model, spread over the ranks, and its optimizer."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 warns of broadcast_buffers
        ddp = DistributedDataParallel(story.model(), **story.spread)
    for layer in ddp.modules() if story.couples else ():
        if isinstance(layer, nn.BatchNorm1d):
            layer.__class__, layer.process_group = Synchronised, None
    torch.manual_seed(100 + rank)
    return ddp, story.optimizer(ddp.parameters())


def twins(story, path, rank):
    """Make a run twice; return whether both end with the same bits."""
    ends = []
    for traced in (False, True):
        ddp, optimizer = begun(story, rank)
        data = with_ids(Shaken(), seed=7) if story.shaken else None
        with ExitStack() as stack:
            if traced:
                options = {"snapshot_every": 1, "data": data, **story.traced}
                given = getattr(optimizer, "parts", optimizer)
                optimizer = stack.enter_context(TracingOptimizer(given, ddp, path, **options))
            for t, own in enumerate(batches_of(story, rank)):
                if data is not None:
                    data.set_epoch(t // 2)
                take(story, ddp, optimizer, own, data, t)
        ends.append([p.detach().clone() for p in [*ddp.parameters(), *ddp.buffers()]])
        ends[-1].append(torch.get_rng_state())
    return all(map(torch.equal, *ends))


def launch(program, folder, *arguments, ranks=2):
    """Run a program in processes; return what each wrote, and how each ended."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", program, str(folder), *arguments],
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    files = [folder / f"what-{rank}.json" for rank in range(ranks)]
    found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    return found, [process.returncode for process in processes], errors


def joined(folder, name, backend):
    """Join the other ranks, by a file; return this one's number."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = f"file://{folder / name}"
    dist.init_process_group(backend, where, timedelta(seconds=60), size, rank)
    return rank


def main(folder):
    """Make all runs; in the last one rank 1 dies."""
    from tests.helpers import rank_failures

    rank = joined(folder, "store", "gloo")
    found = {"bitwise": {n: twins(s, folder / f"{n}.h5", rank) for n, s in STORIES.items()}}
    found["said"] = rank_failures.failures(folder, rank)
    found["whole"] = rank_failures.train(folder / "whole.h5", rank)
    what = folder / f"what-{rank}.json"
    what.write_text(json.dumps(found))
    found["died"] = rank_failures.train(folder / "died.h5", rank, dies=True)
    what.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
