"""Ready tasks: their losses against loops, and a run of each that is replayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from replay import Replay, tasks
from tests.helpers.language import COLUMNS, WORDS, Reader, classes, padded
from tracer import TracingSGD
from tracer.errors import TaskError

DRAW = torch.Generator().manual_seed(0)
POINTS = torch.randn(12, 4, generator=DRAW)
PAIRS = [(x, torch.tensor(k % 3)) for k, x in enumerate(POINTS)]
TARGETS = [(x, x[:3] * 2) for x in POINTS]
NUMBERS = [(x, x[0] * 2) for x in POINTS]


def linear():
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def next_words(model, example):
    words = example["input_ids"]
    logits = model(words[None]).logits[0]
    found = [nn.functional.cross_entropy(logits[t], words[t + 1]) for t in range(len(words) - 1)]
    return sum(found) / len(found)


def right_class(model, example):
    logits = model(padded([{"input_ids": example["input_ids"]}])["input_ids"]).logits[0]
    return nn.functional.cross_entropy(logits, torch.tensor(example["label"]))


READER = Reader(whole=False)
CASES = {
    "classification": (
        tasks.classification(linear, PAIRS, PAIRS),
        lambda model, pair: nn.functional.cross_entropy(model(pair[0]), pair[1]),
    ),
    "regression": (
        tasks.regression(linear, TARGETS, TARGETS),
        lambda model, pair: (model(pair[0]) - pair[1]).square().mean(),
    ),
    "regression of numbers": (
        tasks.regression(nn.Linear(4, 1), NUMBERS, NUMBERS),
        lambda model, pair: (model(pair[0])[0] - pair[1]).square(),
    ),
    "causal_lm": (
        tasks.causal_lm(READER, WORDS, WORDS, collate=padded, columns=COLUMNS),
        next_words,
    ),
    "causal_lm, bf16": (
        tasks.causal_lm(
            READER, WORDS, WORDS, collate=padded, columns=COLUMNS, autocast=torch.bfloat16
        ),
        None,
    ),
    "sequence_classification": (
        tasks.sequence_classification(
            lambda: Reader(whole=True), WORDS, WORDS, collate=classes, columns=COLUMNS
        ),
        right_class,
    ),
}


@pytest.mark.parametrize(("task", "reference"), CASES.values(), ids=CASES)
def test_a_ready_task(tmp_path, task, reference):
    model = task.model()
    if reference is not None:
        found = task.loss(model.double(), _double(task.collate([task.train[k] for k in range(5)])))
        expected = [reference(model, _double(task.train[k])) for k in range(5)]
        assert torch.allclose(found, torch.stack(expected), rtol=1e-10)
    model = task.model()
    with TracingSGD(torch.optim.SGD(model.parameters(), lr=0.1), model, tmp_path / "r.h5") as sgd:
        for ids in ([0, 1, 2], [3, 4, 5]):
            sgd.zero_grad()
            task.loss(model, task.collate([task.train[k] for k in ids])).mean().backward()
            sgd.step(batch_ids=ids)
    run = Replay(tmp_path / "r.h5", task)
    assert run.verify(progress=False)
    assert run.influence([6], methods=("tracin",), progress=False).scores["tracin"].any()


def _double(thing):
    if isinstance(thing, torch.Tensor):
        return thing.double() if thing.is_floating_point() else thing
    if isinstance(thing, dict):
        return {key: _double(value) for key, value in thing.items()}
    return type(thing)(map(_double, thing)) if isinstance(thing, (list, tuple)) else thing


def test_a_model_is_copied():
    task = CASES["causal_lm"][0]
    assert task.model() is not READER
    assert task.model().head.weight is not READER.head.weight


def test_a_batch_without_labels():
    task = tasks.causal_lm(READER, WORDS, WORDS, collate=lambda examples: {"input_ids": 3})
    message = r'a mapping with "labels", found the keys input_ids\.\n1\. Pass collate='
    with pytest.raises(TaskError, match=message):
        task.loss(READER, task.collate(WORDS[:2]))
