"""Recorded batches: a run with random augmentation replays from its log alone."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tests.helpers.training import assert_equal_logs
from tracer import TracingSGD, open_log
from tracer.errors import LogWarning, MismatchError, TracingError
from tracer.log import schema
from tracer.log.parts import recorded_batches, seals

IMAGES = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
TEST = [(IMAGES[k], torch.tensor(k % 3)) for k in range(3)]


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def loss(model, batch):
    x, labels = batch["input"] if isinstance(batch, dict) else batch
    return F.cross_entropy(model(x), labels, reduction="none")


def trace(path, *, record, accumulate=False):
    """Train on images that are shifted at random; return the batches."""
    rng, model = random.Random(0), build()
    sgd, seen = torch.optim.SGD(model.parameters(), lr=0.3), []
    with TracingSGD(sgd, model, path, record=record) as optimizer:
        for t in range(5):
            optimizer.zero_grad()
            parts = [[t, t + 1], [t + 2, t + 5]] if accumulate else [[t, t + 1, t + 4]]
            for ids in parts:
                x = torch.stack([IMAGES[k] + rng.gauss(0, 1) for k in ids])
                batch = {"input": (x, torch.tensor([k % 3 for k in ids])), "epoch": t}
                seen.append((ids, x.clone(), batch["input"][1]))
                (loss(model, batch).mean() / len(parts)).backward()
                options = {"batch": batch} if record == "batches" else {}
                if accumulate:
                    optimizer.observe(ids, **options)
                else:
                    optimizer.step(batch_ids=ids, **options)
                x.zero_()  # the log has its own copy
            if accumulate:
                optimizer.step()
    return seen


def task(train):
    return Task(model=build, loss=loss, train=train, test=TEST)


@pytest.mark.parametrize("accumulate", [False, True])
def test_replay_uses_the_recorded_batches(tmp_path, accumulate):
    """The scores are those of a run whose data were the augmented images, fixed."""
    seen = trace(tmp_path / "run.h5", record="batches", accumulate=accumulate)
    with open_log(tmp_path / "run.h5") as log:
        for (ids, x, labels), micro in zip(
            seen, [m for s in log.steps() for m in s.micro_batches], strict=True
        ):
            assert list(micro.ids) == ids
            assert torch.equal(micro.batch["input"][0], x)
            assert torch.equal(micro.batch["input"][1], labels)
    plain = {k: (IMAGES[k], torch.tensor(k % 3)) for k in range(12)}
    found = Replay(tmp_path / "run.h5", task=task(plain)).influence(
        [0, 1, 2], methods=("tracin", "ideal"), progress=False
    )
    # the same run with an example of its own for every visit
    visits, number, model = {}, 0, build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    owners = []
    size = 2 if accumulate else 1
    with TracingSGD(sgd, model, tmp_path / "fixed.h5") as optimizer:
        for t in range(5):
            optimizer.zero_grad()
            for ids, x, labels in seen[size * t : size * (t + 1)]:
                names = list(range(number, number + len(ids)))
                number += len(ids)
                owners += ids
                visits.update({n: (x[k], labels[k]) for k, n in enumerate(names)})
                (loss(model, (x, labels)).mean() / size).backward()
                optimizer.observe(names)
            optimizer.step()
    fixed = Replay(tmp_path / "fixed.h5", task=task(visits)).influence(
        [0, 1, 2], methods=("tracin", "ideal"), progress=False
    )
    for method in ("tracin", "ideal"):
        expected = np.zeros((3, 12))
        for k, owner in enumerate(owners):
            expected[:, owner] += fixed.scores[method][:, k]
        assert np.allclose(found.scores[method], expected, rtol=1e-6, atol=1e-9)
        assert np.abs(expected).max() > 0.01


def test_without_recording_the_self_check_names_the_option(tmp_path):
    trace(tmp_path / "run.h5", record="ids")
    plain = {k: (IMAGES[k], torch.tensor(k % 3)) for k in range(12)}
    with pytest.raises(MismatchError, match=r'record="batches" and step\(batch_ids=ids, batch='):
        Replay(tmp_path / "run.h5", task=task(plain)).influence([0], progress=False)


def test_recorded_batches_are_compressed(tmp_path):
    model = nn.Linear(2000, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, tmp_path / "run.h5", record="batches") as optimizer:
        for _ in range(4):
            x = torch.randint(0, 3, (64, 2000)).float()
            model(x).sum().backward()
            optimizer.step(batch_ids=list(range(64)), batch=x)
    raw = 4 * 64 * 2000 * 4
    assert (tmp_path / "run.h5").stat().st_size < raw / 3
    with open_log(tmp_path / "run.h5") as log:
        assert torch.equal(log.step(3).micro_batches[0].batch, x)


def recorded(path, *, steps=6, flushing=False, **options):
    """Train with small recorded batches."""
    model = build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TracingSGD(sgd, model, path, record="batches", state_every=1, **options)
    for t in range(optimizer.position[0], steps):
        optimizer.zero_grad()
        model(IMAGES[t : t + 2]).sum().backward()
        optimizer.step(batch_ids=[t, t + 1], batch=IMAGES[t : t + 2])
        if flushing:
            optimizer.flush()
    optimizer.close()


def test_writing_often_takes_no_more_room(tmp_path):
    """HDF5 would write what a compressed piece holds anew with every step, and keep the old."""
    paths = [tmp_path / f"{name}.h5" for name in ("seldom", "often", "resumed")]
    recorded(paths[0])
    recorded(paths[1], flushing=True)
    recorded(paths[2], steps=3)
    recorded(paths[2], resume=True)
    assert paths[1].stat().st_size == paths[0].stat().st_size
    for path in paths[1:]:
        assert_equal_logs(path, paths[0])


def test_a_last_step_whose_batch_is_torn_is_left_out(tmp_path):
    path = tmp_path / "run.h5"
    recorded(path)
    with h5py.File(path, "r+") as file:
        batches = file[recorded_batches.SNAP_BATCHES]
        batches.resize(5 * batches.chunks[0], axis=0)
        status = file[schema.STATUS][:]
        status["closed"] = 0
        file[schema.STATUS][:] = seals.sealed(status)
    with pytest.warns(LogWarning, match="1 torn steps .* It holds 5 whole"), open_log(path) as log:
        assert torch.equal(log.step(4).micro_batches[0].batch, IMAGES[4:6])


@pytest.mark.filterwarnings("ignore:.*is closed without a step")
@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ("batches", {}, 'record="batches" needs batch=, what task.loss takes, at every step'),
        ("ids", {"batch": IMAGES}, 'batch= is for record="batches"; pass that to the optimizer'),
    ],
)
def test_wrong_use(tmp_path, record, options, message):
    model = build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, tmp_path / "run.h5", record=record) as optimizer:
        loss(model, (IMAGES[:1], torch.tensor([0]))).sum().backward()
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(TracingError, match=message):
            optimizer.step(batch_ids=[0], **options)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@dataclass
class Batch:
    """As graph libraries have: attributes, and a method that moves them."""

    x: torch.Tensor
    y: torch.Tensor

    def to(self, device):
        return Batch(self.x.to(device), self.y.to(device))


def of_object(model, batch):
    return loss(model, (batch.to("cpu").x, batch.y))


@pytest.mark.parametrize("extra", [None, object()], ids=["recorded", "refused"])
def test_batches_that_are_objects(tmp_path, extra):
    """They come back as they were; what cannot be stored is said once, and IDs are logged."""
    labels = torch.arange(6) % 2
    model, path = build(), tmp_path / "run.h5"
    data = [(x, y) for x, y in zip(IMAGES[:6], labels, strict=True)]
    task = Task(
        build,
        of_object,
        data,
        data[:1],
        collate=lambda rows: Batch(
            torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
        ),
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with TracingSGD(sgd, model, path, record="batches") as optimizer:
            for t in range(3):
                batch = Batch(IMAGES[2 * t : 2 * t + 2], labels[2 * t : 2 * t + 2])
                if extra is not None:
                    batch.more = extra
                optimizer.zero_grad()
                of_object(model, batch).mean().backward()
                optimizer.step(batch_ids=[2 * t, 2 * t + 1], batch=batch)
    texts = [str(one.message) for one in caught]
    with open_log(path) as log:
        found = log.step(1).micro_batches[0].batch
    if extra is None:
        assert texts == []
        assert type(found) is Batch
        assert torch.equal(found.x, IMAGES[2:4])
    else:
        assert [
            text.startswith("a batch is not recorded: batch.more is a object") for text in texts
        ] == [True]
        assert "1. pass batch= in plain containers" in texts[0]
        assert found is None
    assert Replay(path, task).verify(progress=False).steps == range(3)
