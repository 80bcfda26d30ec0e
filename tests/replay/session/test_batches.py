"""Batches of any class, tensors of odd kinds: converted and moved like the usual ones."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, default_collate

from replay import Replay, Task
from replay.evaluate.nested import fresh, moved, nbytes_of
from tests.helpers.alone import trace
from tests.helpers.cases import cross_entropy
from tracer.errors import InputWarning, TaskError

X = torch.randn(12, 4, generator=torch.manual_seed(0))
DATA = [(x, k % 3) for k, x in enumerate(X)]
METHODS = ("tracin", "ideal", "tracincp")
Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Frozen:
    """A dataclass."""

    x: torch.Tensor
    y: torch.Tensor


class Encoding(UserDict):
    """As tokenizers return it: attributes are items, and ``to`` knows devices only."""

    def __getattr__(self, name):
        if name == "data":  # while it is copied
            raise AttributeError(name)
        return self.data[name]

    def to(self, device):
        return Encoding({k: v.to(device) for k, v in self.data.items()})


class Frame(Mapping):
    """A mapping that cannot be updated."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __getitem__(self, key):
        return {"x": self.x, "y": self.y}[key]

    def __iter__(self):
        return iter("xy")

    def __len__(self):
        return 2


class Graphs:
    """Keeps tensors in a store of its own, which ``apply`` changes, and has ``to``."""

    def __init__(self, **store):
        self.__dict__["_store"] = dict(store)

    def __getattr__(self, name):
        try:
            return self.__dict__["_store"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __copy__(self):
        return Graphs(**self._store)

    def apply(self, function):
        self._store.update({k: function(v) for k, v in self._store.items()})
        return self

    def to(self, device):
        return self.apply(lambda tensor: tensor.to(device))


class Plain:
    """Has ``to`` and attributes."""

    def __init__(self, x, y):
        self.x, self.y, self.note = x, y, {"more": [x]}

    def to(self, device):
        return Plain(self.x.to(device), self.y.to(device))


KINDS = {
    "namedtuple": lambda x, y: Pair(x, y),
    "dataclass": Frozen,
    "BatchEncoding": lambda x, y: Encoding({"x": x, "y": y}),
    "graphs": lambda x, y: Graphs(x=x, y=y),
    "object": Plain,
    "namespace": lambda x, y: SimpleNamespace(x=x, y=y),
}


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def of_parts(model, batch):
    return F.cross_entropy(model(batch.x), batch.y, reduction="none")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    path = tmp_path_factory.mktemp("known") / "run.h5"
    task = Task(linear, cross_entropy, DATA, DATA[:4])
    trace(path, task)
    return path, scores(path, task)


def scores(path, task):
    run = Replay(path, task)
    return run.influence([0, 1], methods=METHODS, checkpoints=[0], progress=False).scores


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_class(known, kind):
    path, expected = known
    collate = lambda examples: KINDS[kind](*default_collate(examples))  # noqa: E731
    found = scores(path, Task(linear, of_parts, DATA, DATA[:4], collate=collate))
    assert all(np.array_equal(found[name], expected[name]) for name in METHODS)


def test_a_mapping_that_cannot_be_copied():
    found = moved(MappingProxyType({"x": torch.ones(2)}), torch.device("cpu"), torch.float64)
    assert found["x"].dtype == torch.float64


@pytest.mark.parametrize("kind", [*KINDS.values(), Frame], ids=[*KINDS, "mapping"])
def test_what_is_converted_is_a_copy(kind):
    batch = kind(torch.ones(2), torch.ones(2, dtype=torch.int64))
    found = moved(batch, torch.device("cpu"), torch.float64)
    at = (lambda b, k: b[k]) if kind is Frame else getattr
    assert at(found, "x").dtype == torch.float64
    assert (at(found, "y").dtype, at(batch, "x").dtype) == (torch.int64, torch.float32)
    assert kind is Frame or type(found) is type(batch)
    at(fresh(batch), "x").zero_()
    assert at(batch, "x").all()


class Ragged(nn.Module):
    """Takes jagged tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.stack([row.sum(0) for row in torch.tanh(self.layer(x)).unbind()])


def jagged(examples):
    x, y = zip(*examples, strict=True)
    rows = [one.expand(1 + k % 2, 4) for one, k in zip(x, y, strict=True)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged), torch.tensor(y)


def listed(examples):
    x, y = zip(*examples, strict=True)
    return [one.expand(1 + k % 2, 4) for one, k in zip(x, y, strict=True)], torch.tensor(y)


class Listed(Ragged):
    """The same of a list."""

    def forward(self, x):
        return torch.stack([torch.tanh(self.layer(row)).sum(0) for row in x])


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_jagged_batches(tmp_path):
    task = Task(Ragged, cross_entropy, DATA, DATA[:4], collate=jagged)
    trace(tmp_path / "run.h5", task)
    same = Task(Listed, cross_entropy, DATA, DATA[:4], collate=listed)
    found, expected = (scores(tmp_path / "run.h5", one) for one in (task, same))
    for name in METHODS:
        assert np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-7)
    assert nbytes_of(jagged(DATA[:2])[0]) >= 3 * 16


class Stream(IterableDataset):
    """Gives examples one after another."""

    def __iter__(self):
        return iter(DATA)


class Known:
    """Is not made yet."""

    def __getitem__(self, i):
        return DATA[i]

    def __len__(self):
        return len(DATA)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), r"found an object of type Stream; give its examples by ID: list\(data\)"),
        ((x for x in DATA), r"found an object of type generator; give its examples by ID: list"),
        (DataLoader(DATA), "found DataLoader of length 12; give its data set: loader.dataset"),
        (Known, r"found the class Known; make one: Known\(...\)"),
        ("data/train", "found 'data/train'; give the examples that it names"),
        (None, "found None; give a list, a mapping by ID"),
        (set(range(3)), r"found .*; give a list, a mapping by ID"),
    ],
)
def test_data_without_ids(data, message):
    for train, test in ((data, DATA), (DATA, data)):
        with pytest.raises(
            TaskError, match=r"Task\(t.*=...\) must hold examples by ID, " + message
        ):
            Task(linear, cross_entropy, train, test)


def contrastive(model, batch):
    """Each example against the others of its batch."""
    z = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(5 * z @ z.T, torch.arange(len(z)), reduction="none")


def test_a_loss_that_needs_others_is_said_to_be_nothing(tmp_path):
    task = Task(linear, contrastive, DATA, DATA[:4])
    trace(tmp_path / "run.h5", task)
    for methods in (METHODS, ("tracincp",)):
        with pytest.warns(
            InputWarning, match="every score is 0: task.loss .*\n.* give the task a m"
        ):
            Replay(tmp_path / "run.h5", task).influence(
                [0, 1], methods=methods, checkpoints=[0], progress=False
            )
