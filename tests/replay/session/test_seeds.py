"""``record="seeds"``: augmentation that is drawn again, in any process, from the log alone."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from replay import Replay, Task
from tracer import TracingOptimizer, open_log, with_ids
from tracer.errors import MismatchError, TracingError, TracingWarning
from tracer.records import Seeds

IMAGES = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
EPOCHS, BATCH = 3, 4


class Augmented(Dataset):
    """Moves each image by numbers of all three generators that data sets draw from."""

    def __len__(self):
        return 16

    def __getitem__(self, k):
        moved = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return IMAGES[k] * moved, torch.tensor(k % 3)


class Own(Augmented):
    """Draws from a generator of its own, which goes on and on."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __getitem__(self, k):
        return IMAGES[k] * torch.rand((), generator=self.generator), torch.tensor(k % 3)


class FromInitial(Augmented):
    """Makes a generator of the seed, as code in worker processes does."""

    def __getitem__(self, k):
        rng = np.random.default_rng(torch.initial_seed())
        return IMAGES[k] * rng.random(dtype=np.float32), torch.tensor(k % 3)


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 4), nn.Tanh(), nn.Linear(4, 3))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def task(train=None):
    tests = [(IMAGES[k], torch.tensor(k % 3)) for k in range(16, 20)]
    return Task(build, loss, train or Augmented(), tests)


def trace(path, *, workers=0, data=None, read=None, late=False, rule="AdamW", **how):
    """Train; ``read`` is what the loader has if that is not ``data``."""
    how = {"record": "seeds"} | how
    data = with_ids(Augmented(), seed=7) if data is None else data
    model = build()
    inner = getattr(torch.optim, rule)(model.parameters(), lr=0.05)
    given = {"data": data} if how["record"] == "seeds" else {}
    with TracingOptimizer(inner, model, path, **given, **how) as optimizer:
        loader = DataLoader(
            read or data,
            BATCH,
            sampler=RandomSampler(data, generator=torch.Generator().manual_seed(1)),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for epoch in range(EPOCHS):
            if not late:
                optimizer.epoch = epoch
                data.set_epoch(epoch)  # what record="batches" leaves to the loop
            batches = list(loader)
            optimizer.epoch = epoch
            for ids, batch in batches:
                optimizer.zero_grad()
                loss(model, batch).mean().backward()
                optimizer.step(batch_ids=ids, **({"batch": batch} if not given else {}))
    return model


def scores(path, **how):
    run = Replay(path, task(), **how)
    found = run.influence([0, 3], methods=["tracin"], progress=False)
    return run, [*found.scores.values(), *run.self_influence(progress=False).scores.values()]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The run with its batches on file: its digests, what it scores, its size."""
    path = tmp_path_factory.mktemp("recorded") / "run.h5"
    trace(path, record="batches", snapshot_every=1)
    with open_log(path) as log:
        return [log.digest(t) for t in range(13)], scores(path)[1], path.stat().st_size


def test_recorded_batches_serve_a_sparse_log(tmp_path, recorded):
    trace(tmp_path / "run.h5", record="batches", snapshot_every=5)
    run, found = scores(tmp_path / "run.h5")
    assert all(map(np.array_equal, found, recorded[1]))
    assert run.verify(progress=False).proof.proved == 12


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [1, 5])
def test_it_is_the_run_whose_batches_are_on_file(tmp_path, recorded, workers, every):
    """Bit for bit, and the log is as small as one of IDs."""
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    digests, expected, size = recorded
    path = tmp_path / "run.h5"
    trace(path, workers=workers, snapshot_every=every)
    with open_log(path) as log:
        assert [log.digest(t) for t in range(13)] == digests
        assert log.metadata["data_seed"] == 7
        assert [step.epoch for step in log.steps()] == [t // 4 for t in range(12)]
    assert path.stat().st_size < size
    run, found = scores(path)
    assert all(map(np.array_equal, found, expected))
    if every > 1:
        proof = run.verify(progress=False).proof
        assert (proof.proved, proof.unproved) == (12, ())
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


def drawn(k, epoch):
    """Return an example as an epoch draws it, by another route."""
    seed = Seeds(7, epoch).of(k)
    torch.manual_seed(seed)
    x = torch.rand(()) + np.random.RandomState(seed % 2**32).rand() + random.Random(seed).random()
    return (IMAGES[k] * x)[None].double(), torch.tensor([k % 3])


def test_tracincp_takes_the_examples_of_the_checkpoints_epoch(tmp_path):
    trace(tmp_path / "run.h5", rule="SGD", snapshot_every=5)
    run = Replay(tmp_path / "run.h5", task(), dtype=torch.float64)
    points = [2, 5, 12]  # of the epochs 0, 1 and 2
    found = run.influence([1], methods="tracincp", checkpoints=points, progress=False)
    itself = run.self_influence(checkpoints=points, progress=False)
    expected, diagonal, model = np.zeros(16), np.zeros(16), build().double()
    for k in points:
        model.load_state_dict({n: w.double() for n, w in run.state_dict(k).items()})

        def gradient(batch):
            value = loss(model, batch).sum()
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, model.parameters())])

        test = gradient((IMAGES[17][None].double(), torch.tensor([17 % 3])))
        gradients = torch.stack([gradient(drawn(i, min(k, 11) // 4)) for i in range(16)])
        expected += 0.05 * (gradients @ test).numpy()
        diagonal += 0.05 * (gradients**2).sum(1).numpy()
    assert np.allclose(found.scores["tracincp"][0], expected, rtol=1e-10, atol=1e-12)
    assert np.allclose(itself.scores["tracincp"], diagonal, rtol=1e-10, atol=1e-12)


def test_examples_are_shown_alike_and_nobodys_numbers_go_on(tmp_path):
    trace(tmp_path / "run.h5")
    shows = dataclasses.replace(task(), show=lambda one: str(float(one[0][0])))
    run, before = Replay(tmp_path / "run.h5", shows), (torch.get_rng_state(), random.getstate())
    assert run.describe_train(3) == run.describe_train(3) != run.describe_train(4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


WRONG = {
    "other-seed": (
        {"read": with_ids(Augmented(), seed=8)},
        r"^step 0 of",
    ),
    "late-epoch": (
        {"late": True},
        r"(?s)^step 4 of.*drew these examples for epoch 0, and optimizer.epoch was 1.*1\. Set",
    ),
    "own-generator": (
        {"data": with_ids(Own(1), seed=7)},
        r"(?s)^step 0 of.*draws at random.*1\. Draw in the data set.*torch\.initial_seed",
    ),
}


@pytest.mark.parametrize(("how", "said"), WRONG.values(), ids=WRONG)
def test_other_examples_are_found_at_their_step(tmp_path, how, said):
    trace(tmp_path / "run.h5", snapshot_every=1, **how)
    of = task(Own(2)) if "data" in how else task()
    with pytest.raises(MismatchError, match=said):
        Replay(tmp_path / "run.h5", of).verify(progress=False)


def accumulated(path, *, seed=7, count=3, ends=False):
    """Train with ``count`` micro-batches a step; ``ends`` drops what an epoch leaves over."""
    data, model = with_ids(Augmented(), seed=seed), build()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(inner, model, path, record="seeds", data=data) as optimizer:
        for epoch in range(2):
            optimizer.epoch = epoch
            for k, (ids, batch) in enumerate(DataLoader(data, BATCH)):
                optimizer.observe(ids)
                (loss(model, batch).mean() / count).backward()
                if (k + 4 * epoch * (not ends)) % count == count - 1:
                    optimizer.step()
                    optimizer.zero_grad()
            if ends:
                optimizer.zero_grad()


def test_a_step_of_two_epochs_is_told_at_once_and_found_at_replay(tmp_path):
    with pytest.warns(TracingWarning, match=r"micro-batches of the epochs 0, 1\..*for epoch 1,"):
        accumulated(tmp_path / "run.h5")
    said = r"(?s)^step 1 of.*: 1 of its 3 micro-batches were drawn for epoch 0, the others for"
    with pytest.raises(MismatchError, match=said):
        Replay(tmp_path / "run.h5", task()).verify(progress=False)


@pytest.mark.filterwarnings("error")
def test_what_its_warning_asks_for_reproduces(tmp_path):
    accumulated(tmp_path / "run.h5", ends=True)
    run = Replay(tmp_path / "run.h5", task())
    assert run.verify(progress=False).steps == range(2)


def test_an_epoch_that_is_never_set_is_told_once(tmp_path):
    """Every epoch has the same augmentation then, and reproduces."""
    data, model = with_ids(Augmented(), seed=7), build()
    inner, seen = torch.optim.SGD(model.parameters(), lr=0.1), []
    with (
        pytest.warns(TracingWarning, match=r"^example 0 was drawn again in epoch 0: .*") as told,
        TracingOptimizer(inner, model, tmp_path / "r.h5", record="seeds", data=data) as optimizer,
    ):
        for ids, batch in [*DataLoader(data, 8)] * 3:
            seen.append(batch[0])
            optimizer.zero_grad()
            loss(model, batch).mean().backward()
            optimizer.step(batch_ids=ids)
    assert len(told) == 1
    assert seen[0].equal(seen[2])
    assert "1. Set optimizer.epoch = epoch before each loop" in str(told[0].message)
    assert Replay(tmp_path / "r.h5", task()).verify(progress=False).steps == range(6)


@pytest.mark.parametrize("epoch", [-1, 1.5, 2**63, "1"])
def test_a_data_set_takes_whole_epochs(epoch):
    data = with_ids([1], seed=1)
    with pytest.raises(TracingError, match="epoch must be None or a whole number from 0 on, found"):
        data.set_epoch(epoch)
    assert data.epoch == 0


def test_a_data_set_may_make_its_own_generator_of_the_seed(tmp_path):
    trace(tmp_path / "run.h5", data=with_ids(FromInitial(), seed=3), snapshot_every=5)
    proof = Replay(tmp_path / "run.h5", task(FromInitial())).verify(progress=False).proof
    assert (proof.proved, proof.unproved) == (12, ())


def test_a_run_goes_on_in_its_epoch_with_its_seed(tmp_path):
    path = tmp_path / "run.h5"
    trace(path, snapshot_every=5)
    data, model = with_ids(Augmented(), seed=7), build()
    inner = torch.optim.AdamW(model.parameters(), lr=0.05)
    how = {"record": "seeds", "snapshot_every": 5, "resume": True}
    with TracingOptimizer(inner, model, path, data=data, **how) as optimizer:
        assert (optimizer.position, data.epoch) == ((12, 2), 2)
        data.set_epoch(3)  # as trainers do
        assert optimizer.epoch == 3
    with pytest.raises(TracingError, match="its data_seed is 7, now it is 8; resume with"):
        TracingOptimizer(inner, model, path, data=with_ids(Augmented(), seed=8), **how)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"record": "seeds"}, r"needs data=.*found None\.\n1\. Write data = with_ids"),
        ({"record": "seeds", "data": with_ids([1])}, r"found with_ids\(\.\.\.\) without seed="),
        ({"data": with_ids([1], seed=1)}, r"data= is for record=.seeds., found record=.ids"),
    ],
    ids=["no-data", "no-seed", "not-seeds"],
)
def test_wrong_arguments(tmp_path, how, said):
    model = build()
    with pytest.raises(TracingError, match=said):
        TracingOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model, tmp_path / "run.h5", **how
        )
    for seed in (-1, 2**63, True, 0.5):
        with pytest.raises(TracingError, match=r"whole number from 0 to 2\*\*63 - 1 as seed"):
            with_ids([1], seed=seed)
