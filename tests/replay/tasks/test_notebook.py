"""A task in a notebook: what a cell shows of it, and a run whose task no module has."""

from __future__ import annotations

import pytest
import torch

from replay import Replay
from tests.replay.tasks.test_ready import CASES
from tracer import open_log
from tracer.errors import TaskError

CELLS = """
from torch import nn
from torch.utils.data import Subset
from replay import tasks
from tracer import TracingSGD, with_ids

pairs = [(torch.full((4,), k / 9), torch.tensor(k % 3)) for k in range(9)]
task = tasks.classification(nn.Linear(4, 3), Subset(pairs, range(6)), {"<b>": pairs[6]})
model = task.model()
with TracingSGD(torch.optim.SGD(model.parameters(), lr=0.1), model, log, task=task) as optimizer:
    for k in range(5):
        optimizer.zero_grad()
        task.loss(model, task.collate(pairs[k : k + 2])).mean().backward()
        optimizer.step(batch_ids=[k, k + 1])
"""


def test_what_a_notebook_shows():
    text = CASES["causal_lm"][0]._repr_html_()
    assert "list of length 12" in text
    assert '<td style="text-align:left">0, 1, 2, ...</td>' in text
    assert "measure" not in text


def test_a_task_of_a_notebook(path, capsys):
    cells = {"__name__": "__main__", "torch": torch, "log": path}
    exec(compile(CELLS, "<ipython-input-1>", "exec"), cells)
    assert "steps 0:3 reproduce" in capsys.readouterr().err
    with open_log(path) as log:
        assert not log.metadata.get("task")
    with pytest.raises(TaskError, match="names no task; pass one: task="):
        Replay(path)
    found = Replay(path, cells["task"]).influence(["<b>"], progress=False)
    assert found.scores["tracin"].any()
    text = cells["task"]._repr_html_()
    assert "<b>" not in text.replace("<p><b>Task</b></p>", "")
    assert "Subset of length 6" in text
