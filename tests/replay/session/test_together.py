"""A job of several processes gives the bits of one, and goes on where it was killed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.results.part_folder import parts_of, remove_parts
from replay.results.parts import Parts
from replay.session import fellows, grid
from replay.session.together import influence_together, self_influence_together, verified_together
from tests.helpers.cases import cross_entropy
from tests.helpers.jobs import Solo
from tracer import TracingOptimizer
from tracer.errors import InputError

WALKS = ("tracin", "ideal", "tracincp", "tracin-sgd")
RUNS = {
    "sgd": (lambda w: torch.optim.SGD(w, 0.2), 1, WALKS),
    "sgd-sparse": (lambda w: torch.optim.SGD(w, 0.2), 4, WALKS),
    "adamw": (lambda w: torch.optim.AdamW(w, 0.02), 1, ("tracin", "tracincp", "unrolled")),
    "adamw-sparse": (lambda w: torch.optim.AdamW(w, 0.02), 4, ("tracin", "tracincp", "unrolled")),
}
TEST = list(range(9))


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9, bias=False), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3))


def examples(count):
    draw = torch.Generator().manual_seed(count)
    return [(torch.randn(6, generator=draw), torch.tensor(k % 3)) for k in range(count)]


TASK = Task(build, cross_entropy, examples(16), examples(11))


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, (make, every, _) in RUNS.items():
        model = TASK.model()
        how = {"task": None, "snapshot_every": every}
        with TracingOptimizer(make(model.parameters()), model, folder / name, **how) as optimizer:
            for t in range(6):
                optimizer.epoch, ids = t // 4, [(4 * t + k) % 16 for k in range(4)]
                optimizer.zero_grad()
                batch = TASK.collate([TASK.train[i] for i in ids])
                TASK.loss(model, batch).mean().backward()
                optimizer.step(batch_ids=ids)
    return folder


def together(log, out, size=1, memory="2GiB", **asked):
    """Return the result, and leave the parts on file."""
    run = Replay(log, TASK, memory=memory, dtype=asked.pop("dtype", None))
    return influence_together(run, TEST, Solo(size), out, **asked)


def arrays(found):
    terms = {f"{m} {n}": v for m, some in found.terms.items() for n, v in some.items()}
    drops = {f"drops {name}": v for name, v in found.drops.items()}
    return {**found.scores, **found.values, **found.quadrature, **terms, **drops}


def same_bits(found, expected):
    assert found.attributes == expected.attributes
    mine, others = arrays(found), arrays(expected)
    assert mine.keys() == others.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], others[name], err_msg=name)


@pytest.mark.parametrize("name", RUNS)
def test_a_job_gives_what_one_process_gives(logs, tmp_path, name):
    asked = {"methods": RUNS[name][2], "checkpoints": 3, "by": "epoch"}
    expected = Replay(logs / name, TASK, dtype="float64").influence(TEST, progress=False, **asked)
    found = together(logs / name, tmp_path / "out.h5", 2, dtype="float64", **asked)
    assert found.attributes == expected.attributes
    theirs = arrays(expected)
    for key, values in arrays(found).items():
        if key in ("split_error", "theta_inside", "gradients"):
            continue
        scale = np.abs(theirs[key]).max() + 1e-3
        np.testing.assert_allclose(values, theirs[key], rtol=0, atol=1e-9 * scale, err_msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_no_bit_depends_on_processes_and_memory(logs, tmp_path, name):
    asked = {"methods": RUNS[name][2], "checkpoints": 3}
    one = together(logs / name, tmp_path / "1.h5", **asked)
    same_bits(together(logs / name, tmp_path / "3.h5", 3, **asked), one)
    same_bits(together(logs / name, tmp_path / "few.h5", 2, memory="2MB", **asked), one)


def test_gradients_are_proven_at_the_ends_of_the_run(logs, tmp_path, monkeypatch):
    """A job's segments have no proofs of their own, but a process's first pass is always one."""
    audits = []
    monkeypatch.setattr("replay.gradients.engine.Engine.audit", lambda one: audits.append(one))
    for size in (1, 3):
        together(logs / "sgd", tmp_path / f"{size}.h5", size, methods="tracin")
        assert len(audits) == 3  # both ends of the training side, the last of the test side
        audits.clear()


class Killed(Exception):
    """In place of a signal."""


def interrupted(monkeypatch, after, log, out, do=together, **asked):
    """Return how many parts a job put on file before it was killed, and its result, if any."""
    added, add = [], Parts.add

    def some(parts, name, values):
        if len(added) == after:
            raise Killed
        assert name not in parts
        added.append(name)
        add(parts, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "add", some)
        try:
            return added, do(log, out, **asked)
        except Killed:
            return added, None


@pytest.mark.parametrize("name", ["sgd-sparse", "adamw"])
@pytest.mark.parametrize("torn", [0, 7])
def test_only_what_is_missing_is_computed(logs, tmp_path, monkeypatch, name, torn):
    monkeypatch.setattr(fellows, "_KEPT", 0.0)
    asked, out = {"methods": RUNS[name][2], "checkpoints": 2}, tmp_path / "out.h5"
    whole, expected = interrupted(monkeypatch, None, logs / name, tmp_path / "whole.h5", **asked)
    first, _ = interrupted(monkeypatch, 12, logs / name, out, **asked)
    (file,) = (path for path in parts_of(out).iterdir() if ".state" not in path.name)
    file.write_bytes(file.read_bytes()[: -torn or None])
    second, _ = interrupted(monkeypatch, 8, logs / name, out, size=2, **asked)
    third, found = interrupted(monkeypatch, None, logs / name, out, **asked)
    same_bits(found, expected)
    assert len(first) + len(second) + len(third) == len(whole) + bool(torn)
    remove_parts(out)
    assert not parts_of(out).exists()


def test_scores_at_a_checkpoint_are_put_on_file_some_columns_at_a_time(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_BLOCK", 3)  # of 9 test and 16 training examples
    asked, out = {"methods": ("tracincp",), "checkpoints": 2}, tmp_path / "out.h5"
    whole, expected = interrupted(monkeypatch, None, logs / "sgd", tmp_path / "1.h5", **asked)
    monkeypatch.setattr(grid, "_COLUMNS", 2)
    first, _ = interrupted(monkeypatch, 2, logs / "sgd", out, **asked)
    rest, found = interrupted(monkeypatch, None, logs / "sgd", out, **asked)
    same_bits(found, expected)
    assert (len(whole), len(first), len(rest)) == (6, 2, 16)


def test_a_state_that_does_not_fit_is_not_used(logs, tmp_path, monkeypatch):
    """A step that the state has behind it was lost: the chunk is walked from the end."""
    monkeypatch.setattr(fellows, "_KEPT", 0.0)
    asked, out = {"methods": ("tracin",)}, tmp_path / "out.h5"
    _, expected = interrupted(monkeypatch, None, logs / "adamw", tmp_path / "whole.h5", **asked)
    interrupted(monkeypatch, 20, logs / "adamw", out, **asked)
    for path in parts_of(out).iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    same_bits(interrupted(monkeypatch, None, logs / "adamw", out, **asked)[1], expected)


def test_another_question_is_refused(logs, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    interrupted(monkeypatch, 3, logs / "sgd", out, methods=("tracin",))
    for more, what in (
        ({"methods": ("ideal",)}, "choice of methods"),
        ({"methods": ("tracin",), "steps": "0:5"}, "choice of window"),
        ({"methods": ("tracin",), "train_ids": [1]}, "list of training examples"),
    ):
        with pytest.raises(InputError, match=f"another question: its {what} .*\n1. To go on"):
            together(logs / "sgd", out, **more)
    changed = replace(TASK, measure=lambda model, batch: cross_entropy(model, batch) * 2)
    monkeypatch.setitem(globals(), "TASK", changed)
    with pytest.raises(InputError, match="another question: its set of test values "):
        together(logs / "sgd", out, methods=("tracin",))


def test_a_question_that_finished_nothing_binds_nobody(logs, tmp_path, monkeypatch):
    """It was refused, say; files of others stay."""
    out = tmp_path / "out.h5"
    assert interrupted(monkeypatch, 0, logs / "sgd", out, methods=("tracin",)) == ([], None)
    parts_of(out).joinpath("other.parts").write_text("hi")
    with pytest.raises(InputError, match="another question"):
        together(logs / "sgd", out, methods=("ideal",))
    parts_of(out).joinpath("other.parts").unlink()
    assert together(logs / "sgd", out, methods=("ideal",)).attributes["methods"] == "ideal"


def test_what_only_the_parts_on_file_were_asked_is_named(tmp_path):
    with Parts(tmp_path, {"by": "epoch"}):
        pass
    with pytest.raises(InputError, match="another question: its by is not the same"):
        Parts(tmp_path, {})


def test_a_full_disk_is_said(tmp_path):
    resource = pytest.importorskip("resource")
    before, parts = resource.getrlimit(resource.RLIMIT_FSIZE), Parts(tmp_path, {})
    said = r"cannot be kept in .*: File too large.\n1. Make room"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InputError, match=said), parts:
            parts.add("large", {"table": np.zeros(1000)})
        with pytest.raises(InputError, match=said):
            parts.keep_state("large", {"table": torch.zeros(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def selves(log, out):
    asked = {"checkpoints": 2, "by": 3, "steps": None, "allow_mismatch": False}
    found = self_influence_together(Replay(log, TASK), Solo(), out, **asked)
    return {name: scores.tolist() for name, scores in found.scores.items()}


def verification(log, out, **asked):
    return str(verified_together(Replay(log, TASK), Solo(), out, steps=None, sample=None, **asked))


@pytest.mark.parametrize(("do", "what"), [(selves, "training losses"), (verification, "gradients")])
def test_they_go_on_likewise(logs, tmp_path, monkeypatch, do, what):
    asked = logs / "adamw-sparse", tmp_path / "out"
    expected = do(asked[0], tmp_path / "whole")
    first, _ = interrupted(monkeypatch, 4, *asked, do)
    with monkeypatch.context() as patch:
        changed = replace(TASK, loss=lambda model, batch: cross_entropy(model, batch) * 1.000001)
        patch.setitem(globals(), "TASK", changed)
        with pytest.raises(InputError, match=f"another question: its set of {what} is not"):
            do(*asked)
    second, found = interrupted(monkeypatch, None, *asked, do)
    assert (len(first), len(second), found) == (4, 2 + 2 * (do is selves), expected)


@pytest.mark.parametrize("name", RUNS)
def test_self_influence_and_verify(logs, tmp_path, name):
    run = Replay(logs / name, TASK)
    asked = {"checkpoints": 2, "by": 3, "steps": None, "allow_mismatch": False}
    expected = run.self_influence(progress=False, **asked)
    found = self_influence_together(run, Solo(2), tmp_path / "out.h5", **asked)
    assert found.attributes == expected.attributes
    for key in expected.scores:
        np.testing.assert_array_equal(found.scores[key], expected.scores[key], err_msg=key)
        np.testing.assert_array_equal(found.by_period[key], expected.by_period[key], err_msg=key)
    for sample in (None, 4):
        one = Replay(logs / name, TASK).verify(sample=sample, progress=False)
        several = verified_together(
            Replay(logs / name, TASK), Solo(2), tmp_path / f"{sample}", steps=None, sample=sample
        )
        assert str(several) == str(one)
