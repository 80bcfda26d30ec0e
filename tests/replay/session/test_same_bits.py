"""A replay gives the same bits in every process, whatever Python's hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers.places import ROOT

SCRIPT = """
import sys, torch
from torch import nn
from replay import Replay, Task
from tracer import TracingOptimizer

torch.set_num_threads(1)
torch.manual_seed(0)
data = [(torch.randn(5), torch.tensor(k % 3)) for k in range(12)]
build = lambda: nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(5, 5), nn.Tanh())))
loss = lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1], reduction="none")
task = Task(model=build, loss=loss, train=data[:9], test=data[9:])
model = task.model()
with TracingOptimizer(torch.optim.AdamW(model.parameters()), model, log=sys.argv[1]) as optimizer:
    for k in range(0, 9, 3):
        optimizer.zero_grad()
        task.loss(model, task.collate(data[k : k + 3])).mean().backward()
        optimizer.step(batch_ids=range(k, k + 3))
methods = ("tracin", "ideal", "tracincp", "tracin-sgd")
run = Replay(sys.argv[1], task=task)
found = run.influence([0, 1, 2], methods=methods, checkpoints=2, progress=False)
print({name: scores.tobytes().hex() for name, scores in found.scores.items()})
print(run.self_influence(progress=False).scores["self"].tobytes().hex())
"""


def test_scores_do_not_depend_on_the_hash_seed(tmp_path):
    found = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / f"{seed}.h5")]
        surroundings = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] == found[1]
