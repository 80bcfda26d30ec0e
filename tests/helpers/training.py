"""A small run whose every step is known: dropout, BatchNorm, Adam or SGD, a scheduler, epochs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import torch
from torch import nn

from tests.helpers.places import ROOT
from tracer import TracingOptimizer

PER_EPOCH = 7
OF_THE_PROCESS = ("run_uuid", "created", "attributes_crc")
RULES = {
    "Adam": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
}


def inverse(optimizer):
    """Return the usual schedule."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))


def build(width=6):
    """Return a model with dropout and buffers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 2)
    )


def batch(t, named=True):
    """Return step t's examples and their IDs."""
    generator = torch.Generator().manual_seed(100 + t)
    ids = torch.randperm(40, generator=generator)[: 5 + t % 2].tolist()
    x = torch.randn(len(ids), 4, generator=generator)
    return [f"row {k}" for k in ids] if named else ids, x


class Run:
    """Trains step by step, as a user's loop would."""

    def __init__(self, path=None, *, rule="Adam", width=6, named=True, schedule=None, **options):
        self.model = build(width)
        self.inner = RULES[rule](self.model.parameters())
        self.scheduler = (schedule or inverse)(self.inner)
        rates = self.scheduler.get_last_lr()
        torch.manual_seed(1)
        self.optimizer = self.inner
        if path is not None:
            self.optimizer = TracingOptimizer(self.inner, self.model, path, **options)
        self.t, self.named = 0, named
        if options.get("resume"):  # as docs/log-format.md says
            for group, rate in zip(self.inner.param_groups, rates, strict=True):
                group["lr"] = rate
            while self.t < self.optimizer.position[0]:
                self.scheduler.step()
                self.t += 1

    def step(self):
        """Take one step."""
        ids, x = batch(self.t, self.named)
        self.optimizer.epoch = self.t // PER_EPOCH
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        if isinstance(self.optimizer, TracingOptimizer):
            self.optimizer.step(batch_ids=ids)
        else:
            self.optimizer.step()
        self.scheduler.step()
        self.t += 1

    def train(self, until):
        """Train up to a step."""
        while self.t < until:
            self.step()
        return self

    def close(self):
        """Close the log."""
        self.optimizer.close()


def unclosed(path, steps=9, **options):
    """Return a run whose log is flushed and left as a kill would leave it."""
    child = os.fork()
    if child == 0:
        run = Run(path, **options).train(steps)
        run.optimizer.flush()
        os._exit(0)
    os.waitpid(child, 0)
    return path


def tables(path):
    """Return every dataset of a log, and its metadata, but for what names the process."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
        found.update({k: v for k, v in file.attrs.items() if k not in OF_THE_PROCESS})
    del found["segments"]
    return found


def assert_equal_logs(left, right):
    """Compare two logs, all but their segments."""
    a, b = tables(left), tables(right)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert np.array_equal(np.asarray(value), np.asarray(b[name])) or _same_bytes(
            value, b[name]
        ), name


def _same_bytes(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def script(code, *arguments, **options):
    """Run Python code in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
