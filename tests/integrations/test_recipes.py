"""Recipes of the documentation: the same bits as without tracing, and runs that go on."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("ignite", reason="needs ignite: make test-integrations")
pytest.importorskip("skorch", reason="needs skorch: make test-integrations")

from ignite.engine import create_supervised_trainer
from skorch import NeuralNetClassifier
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.helpers.places import ROOT
from tests.house.test_docs import Reader, blocks
from tracer import open_log
from tracer.errors import TracingError

pytestmark = pytest.mark.filterwarnings("ignore", "error::tracer.errors.TracingWarning")


@pytest.fixture
def page(request, tmp_path, monkeypatch):
    """The names of a page of the documentation when its blocks have run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = ROOT / "docs" / "how-to" / f"{request.param}.md"
    reader = Reader(path)
    torch.manual_seed(7)
    for block in blocks(path):
        reader.read(block)
    return reader.namespace


def same_bits(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("page", ["ignite"], indirect=True)
def test_ignite(page):
    torch.manual_seed(7)
    model = page["build"]()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = create_supervised_trainer(
        model, adamw, F.cross_entropy, gradient_accumulation_steps=2
    )
    trainer.run(DataLoader(page["train"], batch_size=8, shuffle=True), max_epochs=3)
    torch.manual_seed(7)
    assert same_bits(model, page["fit"](3, "whole.h5"))
    with open_log("run.h5") as cut, open_log("whole.h5") as whole:
        assert [step.epoch for step in cut.steps()] == [0] * 3 + [1] * 3 + [2] * 3
        assert all(cut.batch_ids(t) == whole.batch_ids(t) for t in range(9))
    assert same_bits(model, page["model"])  # which was cut after an epoch
    with pytest.raises(TracingError, match=r"at step 4: it has no whole state there"):
        page["fit"](3, resume=4)


@pytest.mark.parametrize("page", ["skorch"], indirect=True)
def test_skorch(page):
    torch.manual_seed(1)
    plain = NeuralNetClassifier(page["Net"], **page["settings"]).fit(page["X"], page["y"])
    assert same_bits(plain.module_, page["net"].module_)
    with open_log("run.h5") as log:
        ids = [i for t in range(7) for i in log.batch_ids(t)]
        assert len(set(ids)) == 51  # the others are skorch's validation
        assert {step.epoch for step in log.steps()} == {0, 1, 2}


@pytest.fixture
def learner():
    return pytest.importorskip("fastai.learner", reason="needs pip install fastai").Learner


@pytest.mark.parametrize("page", ["fastai"], indirect=True)
def test_fastai(learner, page):
    torch.manual_seed(7)
    model, train, held = page["build"](), page["train"], page["held"]

    def plain(groups, **settings):
        return page["OptimWrapper"](opt=torch.optim.AdamW(model.parameters(), lr=1e-2))

    loaders = page["DataLoaders"](DataLoader(train, 8, shuffle=True), DataLoader(held, 8))
    untraced = learner(loaders, model, F.cross_entropy, opt_func=plain)
    with untraced.no_bar(), untraced.no_logging():
        untraced.fit(2, lr=1e-2)
    assert same_bits(model, page["model"])
    with open_log("run.h5") as log:
        assert [step.epoch for step in log.steps()] == [0] * 6 + [1] * 6
