"""The page on other libraries' metrics: its blocks run where those are installed, and agree."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.house.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "metrics.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Return the names that the page has defined, and the text of its last blocks by library."""
    monkeypatch.chdir(tmp_path)
    names, recipes = {}, {}
    for block in blocks(PAGE):
        if block.tag == "python":
            exec(compile(block.text, PAGE.name, "exec"), names)
        else:
            recipes["quanda" if "quanda" in block.text else "dattri"] = block.text
    return names, recipes


def agreed(names, truth, pair, metric):
    found = names["influence"].agreement(truth=names[truth], progress=False)
    return found.get(pair, metric).values


def available(module):
    """Skip where a library, or what it imports, does not work here."""
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{module}: {error}")


@pytest.mark.filterwarnings("ignore")
def test_dattri(page):
    available("dattri.metric")
    names, recipes = page
    exec(compile(recipes["dattri"], PAGE.name, "exec"), names)
    expected = agreed(names, "subsets", ("subsets", "ideal"), "lds")
    assert np.allclose(names["dattri_lds"], expected, rtol=1e-9)
    expected = agreed(names, "alone", ("leave-one-out", "ideal"), "pearson")
    assert np.allclose(names["dattri_alone"], expected, rtol=1e-9)
    auroc = roc_auc_score(names["wrong"], names["own"].scores["self"])
    assert np.isclose(float(names["dattri_auroc"]), auroc, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_quanda(page):
    available("quanda.metrics.ground_truth")
    names, recipes = page
    exec(compile(recipes["quanda"], PAGE.name, "exec"), names)
    influence, task = names["influence"], names["task"]
    expected = agreed(names, "subsets", ("subsets", "ideal"), "lds").mean()
    assert np.isclose(names["datamodel"].compute()["score"], expected, rtol=1e-6)
    shares = [
        np.mean([task.train[i][1] == task.test[j][1] for i in influence.top(j, method="ideal")[0]])
        for j in influence.test_ids
    ]
    assert np.isclose(names["same_class"].compute()["score"], np.mean(shares), rtol=1e-6)
    order = np.argsort(-names["own"].scores["self"], kind="stable")
    curve = np.cumsum(names["wrong"].numpy()[order]) / names["wrong"].sum().item()
    assert np.isclose(names["found"].compute()["score"], np.trapezoid(curve) / 50, rtol=1e-6)
