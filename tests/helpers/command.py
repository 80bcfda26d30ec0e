"""A folder with a task and a log, and ways to run the program in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from replay import load_task
from replay.command.entry import main
from tests.helpers.places import ROOT
from tracer import TracingOptimizer

TASK = """
import time
import torch
from torch import nn
from replay import Task

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))
data = {f"a{k}": (X[k], Y[k]) for k in range(20)}

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def slow(model, batch):
    print("computing", flush=True)
    time.sleep(0.2)
    return loss(model, batch)

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

train = {k: v for k, v in data.items() if int(k[1:]) < 14}
test = {k: v for k, v in data.items() if int(k[1:]) >= 14}
task = Task(build, loss, train, test, show=lambda example: f"class {int(example[1])}")
slow_task = Task(build, slow, train, test)
other = 3
"""


def trace(path, name, make=torch.optim.SGD):
    task = load_task("work.py:task", trusted=True)
    model = task.model()
    with TracingOptimizer(make(model.parameters(), lr=0.1), model, path, task=name) as optimizer:
        for t in range(4):
            ids = [f"a{t}", f"a{t + 1}"]
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)


def run(capsys, *arguments):
    """Run the program; return exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def started(arguments, **environment):
    """Start Python with this repository on its path; its output is piped."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # an empty PYTHONUNBUFFERED is none: output is buffered as it is for users
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **environment},
        # a suite that runs in a shell's background ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
