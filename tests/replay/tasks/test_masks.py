"""Masks that are drawn from an example's ID: the same in any company, and in a run that replays."""

from __future__ import annotations

import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from replay import Replay, tasks
from replay.steps.verify import NotVerified
from replay.task import example_ids, unknown_ids
from tests.helpers.language import COLUMNS, WORDS, Reader, masked
from tracer import TracingSGD, collate_with_ids, with_ids
from tracer.errors import TaskError

NAMED = {f"a{k}": example for k, example in enumerate(WORDS)}


def task_of(train=WORDS, *, left=False, **given):
    collate = partial(masked, left=left)
    settings = {"collate": collate, "columns": COLUMNS, **given}
    return tasks.masked_lm(Reader(whole=False), train, train, **settings)


def rows(batch):
    """Return each row's words and labels, without the padding."""
    there = batch["attention_mask"].bool()
    return [
        (words[some].tolist(), labels[some].tolist())
        for words, labels, some in zip(batch["input_ids"], batch["labels"], there, strict=True)
    ]


def drawn(task, keys):
    return rows(task.collate([task.test[key] for key in keys]))


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("train", [WORDS, NAMED], ids=["list", "dict"])
def test_a_mask_is_that_of_the_id(train, left):
    task, before = task_of(train, left=left), torch.get_rng_state()
    keys = example_ids(task.train)
    alone = [drawn(task, [key])[0] for key in keys]
    assert drawn(task, keys) == alone
    assert drawn(task, keys[5::-2]) == alone[5::-2]
    assert torch.equal(torch.get_rng_state(), before)
    for example, (words, labels) in zip(WORDS, alone, strict=True):
        whole = example["input_ids"].tolist()
        both = list(zip(words, labels, strict=True))
        assert [word if label == -100 else label for word, label in both] == whole
        assert all((word == 1) == (label != -100) for word, label in both)
    assert len({str(labels) for _, labels in alone}) > 6
    assert drawn(task_of(train, left=left, seed=1), keys) != alone
    assert drawn(pickle.loads(pickle.dumps(task)), keys) == alone


def test_a_data_set_stays_what_it_is():
    task = task_of(NAMED)
    assert list(task.train.keys()) == list(NAMED)
    assert unknown_ids(task.train, ["a3", "b"]) == ["b"]
    assert len(task.train) == len(NAMED)
    assert not hasattr(task_of(WORDS).train, "keys")
    with pytest.raises(TaskError, match="must hold examples by ID"):
        task_of(DataLoader(WORDS))
    empty = task_of([*WORDS[:2], {**WORDS[0], "input_ids": WORDS[0]["input_ids"][:0]}])
    with pytest.raises(TaskError, match=r"has no token, .*\n1\. Leave empty"):
        drawn(empty, [0, 2])


def test_a_run_on_such_masks_and_one_on_others(tmp_path):
    task = task_of()

    def traced(name, collate, data, **how):
        model = task.model()
        loader = DataLoader(with_ids(data), 4, shuffle=True, collate_fn=collate_with_ids(collate))
        sgd = torch.optim.SGD(model.parameters(), lr=0.5)
        with TracingSGD(sgd, model, tmp_path / name, **how) as optimizer:
            for ids, batch in loader:
                optimizer.zero_grad()
                losses = task.loss(model, batch)
                counts = (batch["labels"] != -100).sum(1)
                weights = counts.double() / counts.sum()
                (losses @ weights.float()).backward()
                optimizer.observe(ids, weights, batch if how else None)
                optimizer.step()
        return Replay(tmp_path / name, task)

    raw = [{name: example[name] for name in COLUMNS} for example in WORDS]
    by_id = traced("by_id.h5", task.collate, task.train)
    new = traced("new.h5", masked, raw, record="batches")
    lost = traced("lost.h5", masked, raw)
    assert by_id.verify(progress=False)
    assert new.verify(progress=False)
    with pytest.raises(NotVerified, match='record="batches"'):
        lost.verify(progress=False)
    for run in (by_id, new):
        assert run.influence([0, 1], progress=False).scores["tracin"].any()


def test_examples_without_an_id():
    task = task_of()
    message = r"from an example's ID, .*; found .*\n1\. Train on task\.train.*\n2\. .*record=\"batc"
    with pytest.raises(TaskError, match=message):
        task.collate(WORDS[:2])


def test_a_collator_with_a_generator_of_its_own():
    collate = SimpleNamespace(seed=5)
    with pytest.raises(TaskError, match=r"\(seed=5\) has a generator .*\n1\. Leave seed= out"):
        tasks.masked_lm(Reader(whole=False), WORDS, WORDS, collate=collate)


def test_padding_that_nothing_tells():
    def collate(examples):
        return {name: value for name, value in masked(examples).items() if name != "attention_mask"}

    task = tasks.masked_lm(Reader(whole=False), WORDS, WORDS, collate=collate, columns=COLUMNS)
    same = [0, 4]
    assert len(WORDS[0]["input_ids"]) == len(WORDS[4]["input_ids"])
    task.collate([task.train[key] for key in same])
    with pytest.raises(TaskError, match=r"no attention_mask.*\n1\. Let it return one"):
        task.collate([task.train[0], task.train[1]])
