"""Batches that are objects come back as they were, without a call of anything of their class."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from tracer.codec.nested import NestedError, decode, encode
from tracer.codec.objects import flattened, rebuilt
from tracer.errors import TaskError

Pair = namedtuple("Pair", ["x", "y"])


class Typed(NamedTuple):
    """With a method."""

    x: torch.Tensor
    more: Any = None

    def to(self, device):
        return Typed(self.x.to(device), self.more)


@dataclass(frozen=True)
class Record:
    """Frozen, and with code of its own."""

    x: torch.Tensor
    names: list = field(default_factory=list)

    def __post_init__(self):
        assert CALLS.append("post") is None


class Graph:
    """As graph libraries have: attributes, and a method that moves them."""

    def __init__(self, **parts):
        CALLS.append("init")
        self.__dict__.update(parts)

    def to(self, device):
        return Graph(**{name: part.to(device) for name, part in vars(self).items()})


class Encoding(UserDict):
    """As tokenizers return: a mapping with attributes and a state of its own."""

    def __init__(self, data, encodings=None):
        CALLS.append("init")
        super().__init__(data)
        self._encodings = encodings

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getstate__(self):
        return {"data": self.data, "encodings": self._encodings}

    def __setstate__(self, state):
        raise AssertionError("nothing of the class is called")


class Output(OrderedDict):
    """As model outputs are."""


CALLS: list[str] = []
X = torch.arange(6.0).view(2, 3)
BATCHES = [
    Pair(X, [1, 2]),
    Typed(X, {"a": (1, None)}),
    Record(X, ["a"]),
    Graph(x=X, y=X[0]),
    Encoding({"ids": X}),
    Output(x=X),
    OrderedDict(b=X, a=1),
    {"inner": [Record(X, [Pair(X, 2)])], 3: (X,)},
]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)
def test_round_trip(batch):
    CALLS.clear()
    found = rebuilt(decode(encode(flattened(batch, "batch"), "batch")))
    assert same(found, batch)
    assert CALLS == []
    if isinstance(batch, Encoding):
        assert torch.equal(found.ids, X)


def local():
    class Hidden:
        x = X

    return Hidden()


class Slotted:
    """Attributes without a dict."""

    __slots__ = ("x",)


class Closing:
    """Does something when it is gone."""

    def __del__(self):
        CALLS.append("del")


class Lazy(ModuleType):
    """Imports what it is asked for."""

    def __getattr__(self, name):
        raise AssertionError(f"imported {name}")


class Reduced:
    """Its pickle is a call."""

    def __reduce__(self):
        return print, ("no",)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Pair(X, threading.Lock()), r"batch\[1\] is a lock; a log stores tensors, arrays"),
        (Encoding({"ids": X}, [object()]), r"batch\._encodings\[0\] is a object;"),
        ({"m": nn.Linear(1, 1)}, r"batch\['m'\] is a Linear"),
        (local(), "batch is a Hidden"),
        (Slotted(), "batch is a Slotted"),
        (Reduced(), "batch is a Reduced"),
        (same, "batch is a function"),
        ({"\0object": 1}, "batch is a dict"),
    ],
)
def test_what_is_refused(batch, message):
    with pytest.raises(NestedError, match=message):
        flattened(batch, "batch")


@pytest.mark.parametrize(
    "name",
    [
        "no.such:Thing",
        "os:system",
        "lazy:Thing",
        f"{__name__}:Closing",
        "subprocess:Popen.nothing",
        f"{__name__}:Reduced",
        7,
    ],
)
def test_a_class_that_a_log_may_not_name(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    with pytest.raises(TaskError, match="which is not imported here: import it in the file of"):
        rebuilt({"\0object": [name, None, {}]})
