"""What a task's examples may be: every form of them gives the run and the scores of a list."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from replay import Replay, Task, tasks
from replay.task import example_ids
from tracer import TracingSGD, with_ids
from tracer.errors import TaskError

DRAW = torch.Generator().manual_seed(0)
POINTS, CLASSES = torch.randn(12, 4, generator=DRAW), torch.arange(12) % 3
PAIRS = list(zip(POINTS, CLASSES, strict=True))
ORDER = [7, 2, 11, 0, 4, 9]
BACKWARDS = [11 - k for k in ORDER]


def model():
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def of_pairs(data):
    return tasks.classification(model, data, data)


def hugging_face():
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    data = datasets.Dataset.from_dict({"x": POINTS.tolist(), "y": CLASSES.tolist()})
    data = data.with_format("torch").select(ORDER)
    return Task(model, of_columns, data, data)


def of_columns(network, batch):
    return nn.functional.cross_entropy(network(batch["x"]), batch["y"], reduction="none")


FORMS = {
    "subset": lambda: of_pairs(Subset(TensorDataset(POINTS, CLASSES), ORDER)),
    "subset of a subset": lambda: of_pairs(Subset(Subset(PAIRS, range(11, -1, -1)), BACKWARDS)),
    "dict": lambda: of_pairs({f"p{k}": PAIRS[k] for k in ORDER}),
    "dict of numbers": lambda: of_pairs({k: PAIRS[k] for k in ORDER}),
    "hugging face": hugging_face,
}


def scores(task, path):
    network, ids_of = model(), example_ids(task.train)
    with TracingSGD(torch.optim.SGD(network.parameters(), lr=0.1), network, path) as optimizer:
        for ids, batch in DataLoader(with_ids(task.train), batch_size=2):
            optimizer.zero_grad()
            task.loss(network, batch).mean().backward()
            optimizer.step(batch_ids=ids)
    run = Replay(path, task)
    assert run.verify(progress=False)
    found = run.influence([ids_of[1], ids_of[4]], methods=("tracin",), progress=False)
    assert found.train_ids == ids_of
    return found.scores["tracin"]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_is_a_list(tmp_path, form):
    expected = scores(of_pairs([PAIRS[k] for k in ORDER]), tmp_path / "list.h5")
    found = scores(form(), tmp_path / "form.h5")
    assert expected.any(0).all()
    np.testing.assert_array_equal(found, expected)


def test_data_sets_by_name_are_no_examples():
    splits = {"train": Subset(PAIRS, ORDER), "test": Subset(PAIRS, [1])}
    message = r"Task\(train=...\) must hold examples by ID, .*; give one of its parts: data\['train"
    with pytest.raises(TaskError, match=message):
        of_pairs(splits)
    with pytest.raises(TaskError, match=r"give its rows, not its columns: data.to_dict\('index'\)"):
        of_pairs(pd.DataFrame({"x": [1]}))
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    with pytest.raises(TaskError, match=message):
        of_pairs(datasets.DatasetDict(train=datasets.Dataset.from_dict({"x": [1]})))
