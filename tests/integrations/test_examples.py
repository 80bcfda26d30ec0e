"""The examples in trainers of other libraries run to their pages; each step is proved."""

from __future__ import annotations

import pytest

from tests.examples.test_runs import rows, run


def test_bert(tmp_path):
    pytest.importorskip("transformers", reason="needs transformers: make test-integrations")
    page = run("bert", tmp_path, "--epochs", "1", "--tests", "1", "--texts", "40")
    assert "All 2 steps of the Trainer reproduce" in page
    assert page.count("### ") == 1
    assert (tmp_path / "bert-over-time.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore")  # of lightning about itself
def test_cnn(tmp_path):
    pytest.importorskip("lightning", reason="needs lightning: make test-integrations")
    page = run("cnn", tmp_path, "--epochs", "1", "--tests", "1", "--every", "24")
    assert "All 2 steps of Lightning's loop reproduce" in page
    assert len(rows(page)) == 3
    assert (tmp_path / "cnn-strongest.png").stat().st_size > 10_000
