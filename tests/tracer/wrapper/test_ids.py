"""IDs of examples: which ones are taken, which refused, and how loaders give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.helpers.wrapping import X, Y, backward, build, sgd
from tracer import TracingSGD, collate_with_ids, open_log, with_ids
from tracer.errors import TracingError


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([3, 1], [3, 1]),
        (torch.tensor([3, 1]), [3, 1]),
        (np.array([3, 1], dtype=np.int16), [3, 1]),
        ([torch.tensor(3), np.int64(1)], [3, 1]),
        (("dog", "cat"), ["dog", "cat"]),
        (np.array(["ü", "cat"]), ["ü", "cat"]),
        ([-(2**40), 7], [-(2**40), 7]),
    ],
)
def test_ids(path, ids, expected):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        for _ in range(2):
            backward(model, [0, 1])
            optimizer.step(batch_ids=ids)
    with open_log(path) as log:
        assert log.batch_ids(1) == expected
        assert log.metadata["id_type"] == type(expected[0]).__name__


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, r"got no batch IDs: write optimizer.step\(batch_ids=ids\)"),
        ([], "empty"),
        (torch.zeros(2, 1, dtype=torch.long), r"one-dimensional.*\(2, 1\)"),
        (torch.tensor(3), "one-dimensional"),
        ([[1, 2]], "one-dimensional"),
        (
            [1, "a"],
            "all integers of 64 bits or all text .* integers and text, 1 and 'a'",
        ),
        ([1.5], "found 1.5 of type float"),
        ([True], "found True of type bool"),
        (torch.tensor([0.5]), "found 0.5 of type float"),
        ("ab", "must be a list"),
        (3, "must be a list"),
        ([2**70], "64 bits"),
    ],
)
def test_wrong_ids_are_errors_before_anything_happens(path, ids, message):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0, 1])
        optimizer.step(batch_ids=[0, 1])
        before = model[0].weight.detach().clone()
        with pytest.raises(TracingError, match=message):
            optimizer.step(batch_ids=ids)
        assert torch.equal(before, model[0].weight)
    with open_log(path) as log:
        assert len(log) == 1


def test_more_id_errors(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0, 1])
        optimizer.observe([0, 1])
        with pytest.raises(TracingError, match="use one way"):
            optimizer.step(batch_ids=[0, 1])
        optimizer.step()
        with pytest.raises(TracingError, match="were int so far and are now str"):
            optimizer.step(batch_ids=["a"])
        with pytest.raises(TracingError, match=r"weights of shape \(3,\) for 2 IDs"):
            optimizer.observe([0, 1], weights=[1, 2, 3])
        optimizer.observe([0, 1])
        optimizer.zero_grad()
        with pytest.raises(TracingError, match="got no batch IDs"):
            optimizer.step()
        with pytest.raises(TracingError, match='record="batches"'):
            optimizer.step(batch_ids=[1], batch=X)
    with pytest.raises(TracingError, match="is closed; keep training steps inside"):
        optimizer.step(batch_ids=[0])
    optimizer.close()


def test_loaders(path):
    def collate(examples):
        return torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])

    data = {f"image-{k}": (X[k], Y[k]) for k in range(12)}
    for folder, function in (("plain", None), ("own", collate_with_ids(collate))):
        target = path.with_name(folder + ".h5")
        model = build()
        with TracingSGD(sgd(model), model, target) as optimizer:
            for ids, (x, y) in DataLoader(with_ids(data), batch_size=5, collate_fn=function):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step(batch_ids=ids)
        with open_log(target) as log:
            assert log.batch_ids(0) == [f"image-{k}" for k in range(5)]
            assert log.batch_ids(2) == ["image-10", "image-11"]


def test_with_ids():
    data = list(range(10, 14))
    assert [with_ids(data)[k] for k in range(4)] == list(enumerate(data))
    assert with_ids(data, ids="abcd")[2] == ("c", 12)
    assert len(with_ids(data)) == 4
    with pytest.raises(TracingError, match="3 IDs for 4 examples"):
        with_ids(data, ids=[1, 2, 3])
    with pytest.raises(TracingError, match="needs a dataset with positions"):
        with_ids(iter(data))
