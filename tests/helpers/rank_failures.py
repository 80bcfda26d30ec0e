"""What two ranks are told where a run cannot be traced, and a run of which one rank dies.

Parts of the program in ``ranks.py``; started by themselves, they go on with the run that died.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import ranks
from tracer import TracingOptimizer
from tracer.distributed import gathering, meeting
from tracer.errors import TracinError

DIES, LONGER = 4, 7  # step in which a rank dies, steps of the run
STORY = ranks.Story(ranks.DROPPING, ranks.once, traced={"state_every": 2})


def spread(rank, model=ranks.LINEAR, **options):
    """Return a model that is spread over both ranks."""
    return ranks.begun(ranks.Story(model, spread=options), rank)[0]


def said(make):
    """Return the error or the first warning of the wrapper that is made, empty if there is none."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            make()
        except TracinError as error:
            return f"{type(error).__name__}: {error}"
    texts = [str(w.message) for w in found if w.category.__name__ == "TracingWarning"]
    return next(iter(texts), "")


def wrapped(ddp, log, **options):
    """Make a wrapper."""
    return TracingOptimizer(torch.optim.SGD(ddp.parameters(), lr=0.1), ddp, log, **options)


def steps(ddp, log, rank, count=2, ids=lambda ids: ids):
    """Train a little."""
    with wrapped(ddp, log) as optimizer:
        for t in range(count):
            (own,) = ranks.once(t, rank)
            optimizer.zero_grad()
            ranks.losses(ddp, {"x": ranks.X[own], "y": ranks.Y[own]}).mean().backward()
            optimizer.step(batch_ids=ids(own))


def sharded(rank):
    """Return a model whose parameters no rank has."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(ranks.LINEAR(), mesh=dist.init_device_mesh("cpu", (2,)))


def joining(rank, log):
    """Make a wrapper where ranks may join."""
    ddp = spread(rank)
    with ddp.join():
        wrapped(ddp, log)


def joining_later(rank, log):
    """Train where ranks may join."""
    ddp = spread(rank)
    optimizer = wrapped(ddp, log)
    with optimizer, ddp.join():
        optimizer.zero_grad()
        ranks.losses(ddp, {"x": ranks.X, "y": ranks.Y}).mean().backward()
        optimizer.step(batch_ids=list(range(ranks.SIZE)))


def hooked(rank):
    """Return a model whose gradients are averaged in half precision."""
    ddp = spread(rank)
    ddp.register_comm_hook(None, fp16_compress_hook)
    return ddp


def ignoring(rank):
    """Return a model of which one bias is each rank's own."""
    model = ranks.LINEAR()
    model._ddp_params_and_buffers_to_ignore = ["2.bias"]
    return DistributedDataParallel(model)


def coupled(rank):
    """Return a model that draws random numbers, and whose BatchNorm is everybody's."""
    model = ranks.sequential(
        lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(6), lambda: nn.Linear(6, 1)
    )
    return ranks.begun(ranks.Story(model, couples=True), rank)[0]


def alone(rank, log):
    """Make a wrapper on rank 0 only."""
    meeting._LONGEST, usual = timedelta(seconds=1), meeting._LONGEST
    ddp = spread(rank, process_group=dist.new_group([0, 1]))
    if rank == 0:
        wrapped(ddp, log)
    meeting._LONGEST = usual


def texts(ids):
    """Return IDs as text."""
    return [str(identity) for identity in ids]


def failures(folder, rank):
    """Return what each rank is told."""
    log, taken = folder / f"none-{rank}.h5", folder / "uneven.h5"
    given = {
        "other arguments": lambda: wrapped(spread(rank), log, reduction=["mean", "sum"][rank]),
        "wrong arguments": lambda: wrapped(spread(rank), log, record=["ids", "no"][rank]),
        "a log that exists": lambda: wrapped(spread(rank), taken),
        "sharded": lambda: wrapped(sharded(rank), log),
        "hooked": lambda: wrapped(hooked(rank), log),
        "ignoring": lambda: wrapped(ignoring(rank), log),
        "joining": lambda: joining(rank, log),
        "joining later": lambda: joining_later(rank, folder / "later.h5"),
        "not spread": lambda: steps(ranks.LINEAR(), folder / f"apart-{rank}.h5", rank),
        "own buffers": lambda: steps(
            spread(rank, ranks.SPECTRAL, broadcast_buffers=False), folder / "own.h5", rank
        ),
        "other IDs": lambda: steps(
            spread(rank), folder / "other.h5", rank, ids=texts if rank else list
        ),
        "coupled": lambda: steps(coupled(rank), folder / "drawn.h5", rank),
        "coupled batches": lambda: wrapped(coupled(rank), log, record="batches"),
        "alone": lambda: alone(rank, log),
    }
    return {name: said(make) for name, make in given.items()}


def train(path, rank, *, dies=False, **options):
    """Train a run; return its parameters, or what was said when a rank died."""
    ddp, optimizer = ranks.begun(STORY, rank)
    with ExitStack() as stack:
        found = stack.enter_context(warnings.catch_warnings(record=True))
        with suppress(RuntimeError), wrapped(ddp, path, **STORY.traced, **options) as optimizer:
            for t in range(optimizer.position[0], LONGER):
                if t == 2:
                    optimizer.flush()
                (own,) = ranks.once(t, rank)
                optimizer.zero_grad()
                ranks.losses(ddp, {"x": ranks.X[own], "y": ranks.Y[own]}).mean().backward()
                if dies and rank == 1 and t == DIES:
                    os._exit(9)
                optimizer.step(batch_ids=own)
        if dies:
            return [str(one.message) for one in found]
    return [p.tolist() for p in ddp.parameters()]


def killed(path, rank):
    """Train a run whose rank 1 is killed right after a step, while rank 0 is slow to hear of it."""
    unpacked = gathering.unpacked
    gathering.unpacked = lambda *known: time.sleep(0.03) or unpacked(*known)
    ddp = spread(rank)
    with suppress(RuntimeError), wrapped(ddp, path) as optimizer:
        for t in range(LONGER):
            if rank == 1 and t == DIES:
                os.kill(os.getpid(), signal.SIGKILL)
            (own,) = ranks.once(t, rank)
            optimizer.zero_grad()
            ranks.losses(ddp, {"x": ranks.X[own], "y": ranks.Y[own]}).mean().backward()
            optimizer.step(batch_ids=own)


def main(folder):
    """Go on with the run of which a rank died; then one of which a rank is killed."""
    rank = ranks.joined(folder, "store again", None)  # torch chooses
    found = train(folder / "died.h5", rank, resume=True)
    (folder / f"what-{rank}.json").write_text(json.dumps(found))
    killed(folder / "killed.h5", rank)
    os._exit(0)  # nobody to leave the group with


if __name__ == "__main__":
    main(Path(sys.argv[1]))
