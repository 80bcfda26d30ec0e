"""Each example runs to its page in a few steps, and measures what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from examples import approximation_study, gallery, mislabelled
from tests.examples.idx_files import write_idx
from tests.helpers.places import ROOT

TINY = replace(
    approximation_study.DEFAULT,
    train=20,
    tests=3,
    epochs=1,
    left_out=3,
    subsets=3,
    factors=(1.0,),
    batches=(10,),
    seeds=1,
)


def run(name, folder, *arguments):
    """Run an example as a shell would; return its page."""
    command = import_module(f"examples.{name}").main
    CliRunner().invoke(command, ["--out", str(folder), *arguments], catch_exceptions=False)
    return (folder / f"{name}.md").read_text()


def rows(page):
    """Return the cells of a page's tables, by the first of each line."""
    cells = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in cells}


def test_mnist(tmp_path):
    for part, count in (("train", 64), ("t10k", 30)):
        write_idx(tmp_path, part, count)
    page = run("mnist", tmp_path, "--data", str(tmp_path), "--epochs", "1", "--tests", "2")
    assert "64 training images, 1 epochs, 2 steps of 32; 2 test images, so 4 pairs" in page
    assert 0.9 < float(rows(page)["0.02"][0]) <= 1  # small steps are of first order
    for figure in ("mnist-steps.png", "mnist-pictures.png"):
        assert (tmp_path / figure).stat().st_size > 10_000
    assert "data:image/png" in (tmp_path / "mnist.html").read_text()


@pytest.mark.filterwarnings("ignore")  # of captum's imports
def test_mislabelled(tmp_path):
    pytest.importorskip("captum.influence", reason="captum is in the dev extra")
    options = ("--epochs", "1", "--seeds", "2", "--images", "100")
    page = run("mislabelled", tmp_path, *options)
    assert "80 training images, 8 with a wrong label, 1 epochs; means over 2 seeds" in page
    found = rows(page)
    assert found["Captum, `TracInCP`"] == found["`self` by TracInCP, 4 checkpoints"]
    assert len(found) == 7 + 2
    assert (tmp_path / "mislabelled.png").stat().st_size > 10_000


def test_text(tmp_path):
    page = run("text", tmp_path, "--epochs", "1", "--tests", "2", "--texts", "40")
    assert page.count("### ") == 2
    assert {"concurrency", "testing"} & {cells[0] for cells in rows(page).values()}


def test_text_of_dbpedia(tmp_path):
    for part in ("train", "test"):
        lines = [f'{1 + n % 2},"Title {n}","{"a bird" if n % 2 else "a firm"}"' for n in range(20)]
        (tmp_path / f"{part}.csv").write_text("\n".join(lines))
    page = run("text", tmp_path, "--dbpedia", str(tmp_path), "--epochs", "1", "--tests", "1")
    assert "20 training and 20 test texts" in page


def test_approximation_study_goes_on(tmp_path, monkeypatch):
    only = "MLP-AdamW"
    approximation_study.study(tmp_path, tmp_path, TINY, only)
    first = (tmp_path / "approximation_study.md").read_text()
    assert "1 cells (MLP), 2 to 2 steps" in first
    (cell,) = (tmp_path / "cells").rglob("*.json")
    numbers = {tuple(row[:3]): row[3] for row in json.loads(cell.read_text())["agreement"]}
    for truth, metric in approximation_study.TRUTHS.values():
        for method in {*approximation_study.METHODS} - {"ideal", "unrolled"}:
            assert -1 <= numbers[truth, method, metric] <= 1

    monkeypatch.setattr(approximation_study, "measured", None)  # nothing is computed again
    approximation_study.study(tmp_path, tmp_path, TINY, only)
    assert (tmp_path / "approximation_study.md").read_text() == first
    with pytest.raises(TypeError):  # other settings are another cell
        approximation_study.study(tmp_path, tmp_path, replace(TINY, tests=2), only)


def test_means_over_seeds():
    cells = [approximation_study.Cell("MLP", "SGD", 1.0, 10, seed) for seed in (0, 0, 1)]
    found = [
        {"agreement": [["ideal", "tracin", "spearman", value], ["ideal", "tracin", "sign", 9.0]]}
        for value in (0.2, 0.4, 0.7)
    ]
    results = list(zip(cells, found, strict=True))
    means = approximation_study.over_seeds(results, "ideal", "tracin", "spearman")
    assert means == pytest.approx([0.3, 0.7])
    assert approximation_study.over_seeds(results, "tracin", "ideal", "sign") == [9.0, 9.0]


def test_found_in_first():
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, -1.0, -2.0, -3.0, -4.0])
    wrong = np.isin(np.arange(10), [0, 3, 9])
    shares = [mislabelled.found_in_first(scores, wrong, share) for share in (0.1, 0.4, 0.9, 1)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])


def test_interval_is_students():
    values = [0.5, 0.7, 0.9]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    mean, half = (float(part) for part in gallery.interval(values).split(" ± "))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=2e-3)
    assert gallery.interval([0.25]) == "0.250"


def test_squared_norms_are_those_of_single_passes():
    torch.manual_seed(0)
    model = mislabelled.build_model().double()
    pixels, digits = torch.rand(4, 64, dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    found = mislabelled.squared_norms(model, [pixels, digits])
    for k in range(4):
        model.zero_grad()
        batch = pixels[k : k + 1], digits[k : k + 1], digits
        mislabelled.per_example_loss(model, batch).sum().backward()
        expected = sum(p.grad.square().sum() for p in model.parameters())
        torch.testing.assert_close(found[k], expected, rtol=1e-10, atol=0)


def test_wrong_labels_are_a_tenth():
    images = mislabelled.load()
    changed, wrong = mislabelled.flipped(images, seed=0)
    assert {k for k in images if changed[k][1] != images[k][1]} == wrong
    assert len(wrong) == 180
    assert all(0 <= changed[k][1] <= 9 and changed[k][0] is images[k][0] for k in wrong)


def test_a_page_keeps_its_words(tmp_path):
    page = tmp_path / "x.md"
    gallery.publish(tmp_path, "x", "first", {})
    page.write_text(page.read_text().replace("# x", "# Title\n\nWords.") + "Last words.\n")
    gallery.publish(tmp_path, "x", "second", {})
    assert page.read_text() == (
        f"# Title\n\nWords.\n\n{gallery.BEGIN}\n\nsecond\n\n{gallery.END}\nLast words.\n"
    )
    page.write_text("# Title\n")
    with pytest.raises(click.UsageError, match="has no part for results"):
        gallery.publish(tmp_path, "x", "third", {})


@pytest.mark.parametrize("page", sorted((ROOT / "docs/gallery").glob("*.md")), ids=lambda p: p.stem)
def test_a_page_of_the_gallery_has_its_example(page):
    text, target = page.read_text(), f"example-{page.stem.replace('_', '-')}"
    assert text.index(gallery.BEGIN) < text.index("\n| ") < text.index(gallery.END)
    assert f"make {target}\n" in text
    assert target in (ROOT / "Makefile").read_text()
    assert (ROOT / "examples" / f"{page.stem}.py").exists()
