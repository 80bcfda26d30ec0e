"""Every argument with a wrong value of each type: an error of ours in a few words, or accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from replay import Influence, Replay, SelfInfluence
from tests.helpers.cases import CASES
from tests.helpers.results import made
from tracer import open_log
from tracer.errors import InputError, LogError, TracinError


class Loud:
    """What no message may print."""

    def __repr__(self):
        return "R" * 5000


DATA = {k: (torch.zeros(50), 1) for k in range(300)}
VALUES = {
    **{repr(v): v for v in (None, True, False, 0, -1, 2, 10**30, 1.5, float("nan"), float("inf"))},
    **{repr(v): v for v in (2 + 3j, "", "x", "x" * 999, "\0", b"x", "all", "tracin", "float64")},
    **{repr(v): v for v in ("model", "cpu", "cuda:99", "2GiB", "lots", "1:3", "3:1", "ideal")},
    **{repr(v): v for v in ([], [0, 0], [None], [1.5], [2.0], [True], ["0"], [[0]], [10**30])},
    **{repr(v): v for v in (["tracin", "tracin"], ("tracin", "ideal"), (0, 1), (0, 1, 2), {})},
    **{repr(v): v for v in ({0, 1}, range(2), slice(0, 2), slice(0, 4, 2), torch.float64)},
    **{repr(v): v for v in (torch.int32, torch.device("cpu"), Path("none"), int, [-1])},
    "array": np.array([0, 1]),
    "array of one": np.array(2),
    "array of arrays": np.array([[0]]),
    "tensor": torch.tensor([0, 1]),
    "tensor of one": torch.tensor(2),
    "tensor of floats": torch.tensor([0.5]),
    "int64": np.int64(2),
    "list of int64": [np.int64(0), torch.tensor(1)],
    "float64 number": np.float64(2.0),
    "bool_": np.True_,
    "data": DATA,
    "list of data": list(DATA.values()),
    "function": lambda: 1,
    "object": object(),
    "loud": Loud(),
}
IDS = ["(0, 1)", "(0, 1, 2)", "{0, 1}", "range(0, 2)", "array", "tensor", "list of int64"]
WINDOWS = ["None", "'1:3'", "(0, 1)", "range(0, 2)", "slice(0, 2, None)"]
FLAGS = ["True", "False", "bool_"]
COUNTS = ["2", "array of one", "tensor of one", "int64", repr(10**30)]
ACCEPTED = {  # what each argument takes; all else is refused
    "test_ids": IDS,
    "train_ids": [*IDS, "None"],
    "methods": ["'tracin'", "'ideal'", "('tracin', 'ideal')"],
    "checkpoints": [*COUNTS, *IDS, "'all'"],
    "steps": WINDOWS,
    "parameters": ["None"],
    "ideal_tolerance": [*COUNTS, "None", "1.5", "inf", "float64 number"],
    "by": [*COUNTS, "None"],
    "allow_mismatch": FLAGS,
    "progress": FLAGS,
    "self train_ids": [*IDS, "None"],
    "self steps": WINDOWS,
    "self checkpoints": [*COUNTS, *IDS, "'all'", "None"],
    "self period": [*COUNTS, "None"],
    "self allow_mismatch": FLAGS,
    "drops test_ids": IDS,
    "verify steps": WINDOWS,
    "log": [],
    "task": [],
    "device": ["'cpu'", "device(type='cpu')"],
    "dtype": ["None", "'model'", "'float64'", "torch.float64"],
    "values": ["'model'", "'float64'"],
    "memory": ["'2GiB'", "2", "1.5", repr(10**30), "int64", "float64 number"],
    "audit": COUNTS,
    "threads": [*COUNTS[:-1], "None"],
    "allow_tf32": FLAGS,
    "announce": ["None", "function", "<class 'int'>"],
    "top id": [],
    "top method": ["None", "'tracin'", "'ideal'"],
    "top k": COUNTS,
    "agreement k": COUNTS,
    "pair": ["('tracin', 'ideal')"],
    "metric": [],
    "self by": [],
    "self k": COUNTS,
    "save": [],
    "load": [],
    "self load": [],
    "open_log": [],
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Return by name what is called with one argument."""
    folder = tmp_path_factory.mktemp("asked")
    task = CASES[2].trace(folder / "run.h5")
    run, found = Replay(folder / "run.h5", task=task), made()
    own = run.self_influence(progress=False)
    calls = {}
    for name in ("methods", "checkpoints", "train_ids", "steps", "parameters", "ideal_tolerance"):
        usual = {"methods": ("tracin", "tracincp"), "steps": "0:2", "progress": False}
        calls[name] = lambda v, name=name, usual=usual: run.influence([0], **usual | {name: v})
    quick = {"methods": "tracin", "steps": "0:1", "progress": False}
    for name in ("test_ids", "by", "allow_mismatch", "progress"):
        usual = {"test_ids": [0], **quick}
        calls[name] = lambda v, name=name, usual=usual: run.influence(**usual | {name: v})
    for name in ("train_ids", "steps", "allow_mismatch"):
        calls[f"self {name}"] = lambda v, name=name: run.self_influence(progress=False, **{name: v})
    calls["self checkpoints"] = lambda v: run.self_influence(checkpoints=v, progress=False)
    calls["self period"] = lambda v: run.self_influence(by=v, progress=False)
    options = ("device", "dtype", "values", "memory", "audit", "allow_tf32", "announce", "threads")
    for name in (*options, "log"):
        usual = {"log": folder / "run.h5", "task": task}
        calls[name] = lambda v, name=name, usual=usual: Replay(**usual | {name: v})
    return calls | {
        "task": lambda v: Replay(folder / "run.h5", task=v),
        "drops test_ids": lambda v: run.drops(v, progress=False),
        "verify steps": lambda v: run.verify(steps=v, progress=False),
        "top id": found.top,
        "top method": lambda v: found.top(7, method=v),
        "top k": lambda v: found.bottom(7, k=v),
        "agreement k": lambda v: found.agreement(k=v),
        "pair": lambda v: found.agreement().get(v, "pearson"),
        "metric": lambda v: found.agreement().get(("tracin", "ideal"), v),
        "self by": lambda v: own.top(by=v),
        "self k": own.top,
        "save": lambda v: found.save(v if type(v) is not str and not isinstance(v, Path) else ""),
        "load": Influence.load,
        "self load": SelfInfluence.load,
        "open_log": open_log,
    }


def refused(call, value):
    """Return what an argument is refused with, or None."""
    try:
        call(value)
    except TracinError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ACCEPTED)
def test_wrong_values(asked, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    for work in ("replay.answered", "replay.self_influence", "inspection.compared",
                 "replay.measured_drops"):  # fmt: skip
        monkeypatch.setattr(f"replay.session.{work}", lambda *_, **__: None)
    for label, value in VALUES.items():
        message = refused(asked[name], value)
        assert (message is None) == (label in ACCEPTED[name]), (label, message)
        assert len(message or "") < 350 + 2 * len(value if type(value) is str else ""), label
        assert "RRR" not in (message or "")
    assert not list(tmp_path.iterdir())


def test_values_that_are_understood(asked):
    assert list(asked["methods"]("tracin").scores) == ["tracin"]
    assert asked["test_ids"](iter([1, 0])).test_ids == [1, 0]
    assert asked["test_ids"](torch.tensor([1, 0])).test_ids == [1, 0]
    assert asked["test_ids"]({1: "", 0: ""}).test_ids == [1, 0]
    assert asked["dtype"]("float64").self_influence(progress=False).attributes[
        "gradient_dtype"
    ] == ("torch.float64")
    assert asked["checkpoints"](10**30).attributes["checkpoints"] == "0 1 2 3 4 5 6"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("methods", ("trak",), r"methods are any of tracin, .*; found \('trak',\)"),
        ("methods", ["tracin", "tracin"], "names one twice: tracin, tracin; name each once"),
        ("test_ids", "3", r"expected a list of test IDs like \[3, 14\], found '3'"),
        ("test_ids", 3, r"expected a list of test IDs like \[3, 14\], found 3"),
        ("test_ids", [3.0], "number 1 of the list is 3.0; give the IDs, not the examples"),
        ("test_ids", list(DATA.values()), "number 1 of the list is tuple of length 2; give the ID"),
        ("test_ids", [99], "the test set has no example 99; its 4 IDs begin 0, 1, 2"),
        ("train_ids", [3, 3], "training ID 3 is listed twice; list each example once"),
        ("train_ids", [], "at least one training ID, found none; None means all"),
        ("steps", (0, 99), r'of this run, found \(0, 99\); write "0:5", slice\(0, 5\)'),
        ("parameters", [0], r'patterns of names like "head..", at least one, or None for all'),
        ("checkpoints", {1: 2}, 'a number, a list of steps, "epochs" or "all", found dict of len'),
        ("dtype", torch.float16, '"float64" or "float32", found torch.float16'),
        ("memory", "lots", "memory is a size such as .* found 'lots'"),
        ("allow_mismatch", "no", "allow_mismatch must be True or False, found 'no'"),
        ("task", DATA, "must be a replay.Task or its name, found dict of length 300"),
        ("top k", 0, "k must be a whole number from 1 on, found 0"),
        (
            "pair",
            "tracin",
            r'and a metric, get\(\(.tracin., .ideal.\), "pearson"\) or .*found the pair .tr',
        ),
        ("metric", "ideal", 'metric must be "pearson" or .*, found .ideal.'),
    ],
)
def test_messages(asked, name, value, message):
    with pytest.raises(TracinError, match=message):
        asked[name](value)


def test_a_log_for_a_result_and_the_reverse(tmp_path):
    task = CASES[2].trace(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task=task)
    run.influence([0], progress=False).save(tmp_path / "i.h5")
    run.self_influence(progress=False).save(tmp_path / "s.h5")
    for name in ("i.h5", "s.h5"):
        with pytest.raises(LogError, match=r"not a run log: .*Influence.load or SelfInfluence"):
            Replay(tmp_path / name, task=task)
    for load, name in ((Influence.load, "s.h5"), (SelfInfluence.load, "i.h5")):
        with pytest.raises(
            InputError, match="expected .*influence, and .* holds .*influence; read that with"
        ):
            load(tmp_path / name)
        with pytest.raises(InputError, match=r"is a run log, not a result; .*replay.Replay"):
            load(tmp_path / "run.h5")


def test_pairs_in_either_order():
    agreement = made().agreement(k=3)
    there, back = (
        agreement.get(pair, "spearman") for pair in (("tracin", "ideal"), ("ideal", "tracin"))
    )
    assert back.pair == ("ideal", "tracin")
    assert (back.values == there.values).all()
    with pytest.raises(InputError, match=r"slope differs for ideal against tracin; .*'ideal'\)"):
        agreement.get(("ideal", "tracin"), "slope")
