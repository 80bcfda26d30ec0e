"""Figures: what is drawn is what the result holds, and nothing global changes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

from replay import Task, plots
from tests.helpers.results import adding_up, left_out, of_themselves, swept
from tracer.errors import InputError

mpl.use("agg")


DRAWS = {
    "agreement": lambda found: plots.agreement(found),
    "scatter": lambda found: plots.scatter(found),
    "completeness": lambda found: plots.completeness(found),
    "taylor_gap": lambda found: plots.taylor_gap(found),
    "ranking": lambda found: plots.ranking(found, found.test_ids[0]),
    "against_truth": lambda found: plots.against_truth(found, left_out(found)),
    "over_time": lambda found: plots.over_time(found, found.test_ids[0]),
    "checkpoint_error": lambda found: plots.checkpoint_error(swept(found)),
    "foretold": lambda found: plots.foretold(found, left_out(found)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_figure_is_a_figure_and_changes_nothing(draw, tmp_path):
    before = dict(mpl.rcParams)
    figure = draw(adding_up())
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.svg")
    assert dict(mpl.rcParams) == before
    sizes = [text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()]
    assert min(sizes) >= 8
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_numbers_that_are_not_finite_and_ids_that_a_typesetter_reads(draw, tmp_path):
    found = adding_up(lambda k: f"<script>$x^{{$ \\frac &\n{k}")
    found.scores["tracin"][:] = np.inf
    found.scores["ideal"][0, 0] = np.nan
    found.terms["ideal"]["data"][1] = np.nan
    draw(found).savefig(tmp_path / "figure.svg")


def test_of_many_scores_the_largest_are_drawn_and_some(monkeypatch):
    module = import_module("replay.plots.agreement")
    monkeypatch.setattr(module, "_DOTS", 5)
    monkeypatch.setattr(module, "LARGEST", 4)
    x, y = np.random.default_rng(0).normal(size=(2, 2, 6)) * [[[1]], [[9]]]
    x[1, 2], y[0, 4] = np.nan, np.inf
    finite = np.isfinite(x) & np.isfinite(y)
    shares = [np.abs(one) / np.abs(one[finite]).max() for one in (x, y)]
    largest = np.argsort(-np.where(finite, np.fmax(*shares), -1).ravel())[:4]
    assert module.strongest(x, y).tolist() == sorted(largest)
    (axes,) = plots.scatter(replace(adding_up(), scores={"x": x, "y": y})).axes
    places = sorted({0, 2, 5, 8, 11, *largest})
    assert axes.get_title().startswith(f"{len(places)} of 12 dots: ")
    line = next(line for line in axes.lines if len(line.get_xdata()) == len(places))
    np.testing.assert_array_equal(line.get_xdata(), x.ravel()[places])
    assert axes.texts[0].get_text().startswith("2 not finite")


def test_scatter_has_every_score():
    found = adding_up()
    figure = plots.scatter(found)
    pairs = [("tracin", "ideal"), ("tracin", "tracincp"), ("ideal", "tracincp")]
    for axes, (x, y) in zip(figure.axes, pairs, strict=True):
        (line,) = (line for line in axes.lines if len(line.get_xdata()) == 12)
        assert np.array_equal(line.get_xdata(), found.scores[x].ravel())
        assert np.array_equal(line.get_ydata(), found.scores[y].ravel())
        assert axes.get_xlabel().startswith(x)
        assert axes.get_ylabel().startswith(y)


def test_the_matrix_has_means_and_intervals():
    """The mean of scipy's own correlations, and scipy's bootstrap of them."""
    found = adding_up()
    axes = plots.agreement(found).axes[0]
    (image,) = axes.images
    own = [
        stats.spearmanr(found.scores["tracin"][j], found.scores["tracincp"][j])[0] for j in (0, 1)
    ]
    assert image.get_array()[0, 2] == pytest.approx(np.mean(own))
    assert image.get_array()[2, 0] == pytest.approx(np.mean(own))
    cells = [text.get_text() for text in axes.texts]
    low, high = found.agreement().get(("tracin", "tracincp"), "spearman").interval()
    assert cells[2] == f"{np.mean(own):.3f}\n{low:.3f} to\n{high:.3f}"


def test_bars_add_up_to_what_was_measured():
    found = adding_up()
    figure = plots.completeness(found)
    assert [axes.get_title() for axes in figure.axes] == ["tracin", "ideal"]
    for axes in figure.axes:
        method = axes.get_title()
        widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
        totals = found.completeness[method]
        assert set(widths) == set(totals) - {"measured"}
        for term, drawn in widths.items():
            assert drawn == pytest.approx(totals[term]), term
        (measured,) = (line for line in axes.lines if line.get_label() == "measured")
        assert np.sum(list(widths.values()), axis=0) == pytest.approx(measured.get_xdata())
        for row in (0, 1):  # what is positive goes to the right, one after the other
            bars = [bars[row] for bars in axes.containers]
            ends = [bar.get_x() + bar.get_width() for bar in bars]
            assert max(ends) == pytest.approx(sum(max(0, bar.get_width()) for bar in bars))
            assert min(ends) == pytest.approx(sum(min(0, bar.get_width()) for bar in bars))


def test_of_many_test_examples_those_with_the_largest_residuals():
    found = adding_up()
    found.terms["ideal"]["residual"][:] = [[9.0, 0.1]] * 4
    found.terms["tracin"]["residual"][:] = 0
    axes = plots.completeness(found, most=1).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["7"]


@pytest.mark.parametrize("test_id", [None, 3])
def test_the_taylor_gap(test_id):
    found = adding_up()
    rows = [0, 1] if test_id is None else [1]
    top, middle, low = plots.taylor_gap(found, test_id=test_id).axes
    measured = found.terms["ideal"]["measured"][:, rows]
    start = found.values["before"][rows].mean()
    (value,) = (line for line in top.lines if line.get_label() == "measured")
    assert value.get_ydata()[1:] == pytest.approx(start - measured.mean(1).cumsum())
    assert value.get_ydata()[0] == pytest.approx(start)
    lines = {line.get_label(): line.get_ydata() for line in middle.lines}
    explained = measured - found.terms["tracin"]["residual"][:, rows]
    assert lines["measured"][1:] == pytest.approx(measured.mean(1).cumsum())
    assert lines["tracin predicts"][1:] == pytest.approx(explained.mean(1).cumsum())
    assert "ideal predicts" not in lines
    (gap,) = (line for line in low.lines if line.get_label() == "tracin − measured")
    assert gap.get_ydata() == pytest.approx((explained - measured).mean(1))


def test_ranking_shows_pictures_labels_and_signs():
    found = adding_up()
    found.scores["tracin"][0] = [0.0, 2, 1, 0, -3, 0]
    data = {k: (np.full((2, 2), k / 10), f"a {k}") for k in range(10)}
    task = Task(lambda: None, lambda *_: None, data, data, show=lambda example: example)
    figure = plots.ranking(found, 7, task=task)
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2, 1, -3]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1 a 1", "2 a 2", "4 a 4"]
    assert axes.get_title() == "test example 7: a 7"
    pictures = [image for inset in axes.child_axes for image in inset.images]
    assert [int(image.get_array()[0, 0, 0]) for image in pictures] == [26, 51, 102]


def test_self_influence_finds_the_mislabelled():
    found = of_themselves(range(100, 130))
    wrong = [101, 105, 117]
    first, second = plots.self_influence(found, k=5, mislabelled=wrong).axes
    ids, scores = found.top(5)
    assert [bar.get_width() for bar in first.patches] == scores.tolist()
    assert [text.get_text() for text in first.get_yticklabels()] == list(map(str, ids))
    red = [to_hex(bar.get_facecolor()) == "#d55e00" for bar in first.patches]
    assert red == [identity in wrong for identity in ids]
    for line in second.lines[:2]:
        ranks = stats.rankdata(-found.scores[line.get_label()])
        at_half = np.mean([ranks[identity - 100] <= 15 for identity in wrong])
        assert line.get_ydata()[15] == pytest.approx(100 * at_half)
        assert line.get_ydata()[-1] == pytest.approx(100)
    with pytest.raises(InputError, match="mislabelled names the example 7, which the result does"):
        plots.self_influence(found, mislabelled=[7])


def test_against_truth_draws_means_intervals_and_points():
    found = adding_up()
    truth = left_out(found)
    agreement = found.agreement(truth=truth)
    axes = plots.against_truth(found, truth, metric="pearson").axes[0]
    for n, method in enumerate(found.scores):
        points, interval, mean = axes.lines[3 * n : 3 * n + 3]
        one = agreement.get(("leave-one-out", method), "pearson")
        assert np.array_equal(points.get_xdata(), one.values)
        own = [stats.pearsonr(truth.change[:, j], found.scores[method][j])[0] for j in (0, 1)]
        assert one.values == pytest.approx(own)
        assert tuple(interval.get_xdata()) == one.interval()
        assert mean.get_xdata()[0] == one.mean


def test_foretold_draws_runs():
    found = adding_up()
    truth = left_out(found)
    for axes, method in zip(plots.foretold(found, truth).axes, found.scores, strict=True):
        (points,) = (line for line in axes.lines if len(line.get_xdata()) == 12)
        assert points.get_xdata() == pytest.approx(found.scores[method].ravel())
        assert points.get_ydata() == pytest.approx(truth.change.T.ravel())


@pytest.mark.parametrize("draw", [plots.completeness, plots.taylor_gap])
def test_a_result_without_terms(draw):
    with pytest.raises(InputError, match="none of its methods walks the steps") as raised:
        draw(replace(adding_up(), terms={}, drops={}))
    assert "methods=('tracin', 'ideal')" in str(raised.value)


def test_over_time_adds_up_what_was_earned():
    found = adding_up()
    rates = [0.1, 0.1, 0.05, 0.05]
    drawn = plots.over_time(found, 3, method="ideal", k=1, learning_rates=rates)
    curves, below = drawn.axes
    assert (curves.get_legend(), len(drawn.legends)) == (None, 1)  # outside: it hides no curve
    best, worst = found.top(3, method="ideal", k=1)[0], found.bottom(3, method="ideal", k=1)[0]
    lines = {line.get_label(): line for line in curves.lines}
    for name in (f"+ {best[0]}", f"− {worst[0]}"):
        earned = found.by_period["ideal"][1, int(name[2:])]
        assert lines[name].get_xdata().tolist() == [0, 2, 4]
        assert lines[name].get_ydata() == pytest.approx([0, earned[0], earned.sum()])
    assert below.lines[0].get_ydata().tolist() == [*rates, rates[-1]]
    with pytest.raises(InputError, match="one number for each of the 4 steps of the result, found"):
        plots.over_time(found, 3, learning_rates=[0.1])
    with pytest.raises(InputError, match="the result has no scores by period") as raised:
        plots.over_time(adding_up(periods=()), 3)
    assert 'by="epoch"' in str(raised.value)


def test_checkpoint_error_draws_medians_by_number():
    sweep = swept(adding_up())
    sweep.errors["ideal"]["pearson"][4, 0] = np.nan
    (axes,) = plots.checkpoint_error(sweep, measure="pearson", against="ideal").axes
    medians = sweep.median("pearson", against="ideal")
    for line, rows in zip(axes.lines, (slice(0, 3), slice(3, 6)), strict=True):
        assert line.get_xdata().tolist() == [1, 2, 4]
        assert line.get_ydata() == pytest.approx(medians[rows])
    assert [line.get_label() for line in axes.lines] == ["even", "late"]
