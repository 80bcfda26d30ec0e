"""Counterfactual runs from the command line."""

from __future__ import annotations

import json
import os
from itertools import product

import numpy as np
import pytest

from replay import Counterfactual, Replay
from replay.counterfactual.runs import Runs
from tests.helpers.command import run, trace

ASK = ("counterfactual", "run.h5", "--test", "ids.txt")


@pytest.fixture
def train(folder):
    (folder / "train.txt").write_text("a1\na9  # never visited\na3\n")
    return folder


def test_leave_one_out(train, capsys):
    code, out, err = run(capsys, *ASK, "--leave-one-out", "train.txt")
    assert (code, "wrote run.counterfactual.h5" in err) == (0, True), err
    found = Counterfactual.load(train / "run.counterfactual.h5")
    expected = Replay("run.h5").leave_one_out(["a14", "a17"], ["a1", "a9", "a3"])
    assert np.array_equal(found.values, expected.values)
    assert found.attributes == expected.attributes
    assert out.startswith("What would have happened: leave-one-out of 3 runs, denominators of ")
    assert max(map(len, out.splitlines())) <= 80
    j = found.test_ids.index("a14")
    best = ["a1", "a9", "a3"][int(found.change[:, j].argmax())]
    row = next(line for line in out.splitlines() if " a14 " in line)
    assert f"{found.change[:, j].max():.4g} │ {best}" in row
    assert not list(train.glob("*.parts"))


@pytest.mark.parametrize(
    ("asked", "protocol", "sizes"),
    [
        (("--subsets", 4, "--fraction", 0.25, "--seed", 2), "fraction 0.25, seed 2", [4] * 4),
        (("--remove", "train.txt"), "remove of 1 runs", [3]),
        (("--remove", "train.txt", "--scale", 0.5), "scale of 1 runs", [3]),
        (("--leave-one-out", "all", "--renormalise"), "of the examples left", [1] * 14),
        (("--remove", "train.txt", "--along", 3), "remove of 1 runs", [3]),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_every_choice_of_runs(train, capsys, asked, protocol, sizes):
    code, out, err = run(capsys, *ASK, *asked, "--json")
    assert code == 0, err
    told, found = json.loads(out), Counterfactual.load(train / "run.counterfactual.h5")
    assert protocol in told["protocol"]
    assert list(map(len, told["runs"])) == sizes
    assert told["change"] == found.change.tolist()
    assert (found.values_along.shape[1] == 2) == ("--along" in asked)
    if "--scale" in asked:
        assert set(found.changes[0].values()) == {0.5}
    code, out, err = run(capsys, *ASK, *asked, "--overwrite")
    assert (code, found.protocol in " ".join(out.split())) == (0, True), err


def test_scores_beside_the_log_are_compared(train, capsys):
    run(capsys, "influence", "run.h5", "--test", "all")
    ask = (*ASK, "--leave-one-out", "all", "--overwrite")
    code, out, err = run(capsys, *ask)
    assert code == 0, err
    told = "Against leave-one-out of 14 runs, denominators of the run: mean over 2 test examples"
    assert told in " ".join(out.split())
    for name in ("tracin", "tracincp", "Pearson", "Spearman", "scale", "ratio of totals"):
        assert name in out
    told = json.loads(run(capsys, *ask, "--json")[1])["agreement"]
    row = next(r for r in told if (r["method"], r["metric"]) == ("ideal", "pearson"))
    assert row["low"] <= row["mean"] <= row["high"]
    (train / "run.influence.h5").rename(train / "scores.h5")
    code, out, _ = run(capsys, *ASK, "--subsets", 5, "--influence", "scores.h5", "--overwrite")
    assert (code, "LDS" in out, "Spearman" in out) == (0, True, False)


def test_dry_run_writes_nothing(train, capsys):
    before = sorted(train.iterdir())
    for asked in (("--leave-one-out", "train.txt"), ("--subsets", 3), ("--remove", "train.txt")):
        code, out, err = run(capsys, *ASK, *asked, "--dry-run")
        assert (code, out.startswith("about "), "peak memory" in out) == (0, True, True), err
        told = json.loads(run(capsys, *ASK, *asked, "--dry-run", "--json")[1])
        assert told["seconds"] > 0
    assert sorted(p for p in train.iterdir() if p.name != "__pycache__") == [
        p for p in before if p.name != "__pycache__"
    ]


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_dry_run_counts_workers(train, capsys, monkeypatch, workers):
    monkeypatch.setattr(Runs, "timed", lambda *_: (1000.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    ask = (*ASK, "--leave-one-out", "train.txt", "--dry-run", "--json", "--workers", workers)
    told = json.loads(run(capsys, *ask)[1])
    log = Replay("run.h5").log
    first = [
        next(t for t in range(len(log)) if identity in log.batch_ids(t))
        for identity in ("a1", "a3")
    ]
    along, steps = len(log) - min(first), sum(len(log) - t for t in first)
    at_once, count = min(workers, 2), min(workers, 3)
    assert told["seconds"] - told["starting"] == pytest.approx(
        1000 * (along + (along * count + steps) / at_once)
    )
    whole = told["peak_bytes"] / json.loads(run(capsys, *ask[:-1], 1)[1])["peak_bytes"]
    assert whole == pytest.approx(1 if count == 1 else 1 + count, rel=0.01)


def test_ctrl_c_says_what_is_kept(train, capsys, monkeypatch):
    taken, values = [], Runs.values

    def some(runs, change):
        taken.append(change)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return values(runs, change)

    monkeypatch.setattr(Runs, "values", some)
    code, _, err = run(capsys, *ASK, "--leave-one-out", "train.txt")
    said = "Finished parts are in run.counterfactual.h5.parts; the same command goes on."
    assert (code, said in err) == (130, True)
    code, _, err = run(capsys, *ASK, "--leave-one-out", "train.txt")
    assert (code, len(taken)) == (0, 4), err
    assert not list(train.glob("*.parts"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "expected one of --leave-one-out train.txt, --subsets 100 and --remove train.txt"),
        (("--subsets", 3, "--remove", "train.txt"), "expected one of --leave-one-out train.txt"),
        (("--subsets", 3, "--scale", 0.5), "--scale goes with --remove"),
        (("--remove", "none.txt"), "the list of training IDs 'none.txt' cannot be read: No such"),
        (("--remove", "ids.txt"), "ids.txt: line 2: the training set has no example 'a14'"),
        (("--remove", "run.h5"), "'run.h5' is not a text in UTF-8, but a list of training IDs is"),
        (("--remove", "train.txt", "--out", "train.txt", "--overwrite"), "would replace train.txt"),
        (("--subsets", 3, "--influence", "none.h5", "--overwrite"), "there is no result 'none.h5'"),
        (("--subsets", 3, "--influence", "none.h5", "--dry-run"), "there is no result 'none.h5'"),
        (("--subsets", 3, "--influence", "run.h5", "--dry-run"), "run.h5 is a run log"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_asked(train, capsys, asked, said):
    code, out, err = run(capsys, *ASK, *asked)
    assert (code, out) == (2, "")
    assert said in err.replace("\n", " ")


def test_scores_that_do_not_fit_are_found_before_the_runs_are_taken(train, capsys, monkeypatch):
    """Named ones are an error; those beside the log are only left out."""
    run(capsys, "influence", "run.h5", "--test-id", "a15", "--method", "tracin")
    (train / "run.influence.h5").rename(train / "scores.h5")
    trace(train / "other.h5", "work.py:task")
    run(capsys, "influence", "other.h5", "--test", "all", "--method", "tracin")
    ask = (*ASK, "--leave-one-out", "train.txt")
    wrong = {"scores.h5": "['a15'] ..., the truth is of", "other.influence.h5": "are of the run"}
    with monkeypatch.context() as patch:
        patch.setattr(Runs, "walk", None)
        for (file, why), more in product(wrong.items(), ((), ("--dry-run",))):
            code, out, err = run(capsys, *ask, "--influence", file, *more)
            assert (code, out, why in " ".join(err.split())) == (2, "", True), err
    (train / "scores.h5").rename(train / "run.influence.h5")
    code, out, err = run(capsys, *ask)
    assert (code, "wrote run.counterfactual.h5" in err) == (0, True)
    assert "Note: the runs are not compared with run.influence.h5. the scores are of" in err
    assert "Against" not in out
