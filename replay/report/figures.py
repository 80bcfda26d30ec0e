"""The page's figures: narrow ones, so that a telephone shows them at a size that can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from markupsafe import Markup
from matplotlib.figure import Figure

from replay import plots
from replay.methods.names import reference
from replay.report.accounts import misses
from replay.report.comparisons import hover
from replay.report.study import Study
from replay.report.svg import drawn, inline
from replay.results.influence import Influence
from tracer.records import ID

_WIDTH = 4.4  # inches
_PAIRS = 6  # of methods; more are in the table


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        svg: Its SVG element.
        caption: What is seen, in words.
        dots: What its dots are, as JSON; empty if they do not answer.
    """

    svg: Markup
    caption: str
    dots: Markup | str = ""


def drawings(study: Study) -> dict[str, list[Drawing]]:
    """Return the figures that a study allows, by section; none where it does not."""
    return {
        "agreement": _agreement(study.influence),
        "completeness": _completeness(study.influence),
        "taylor": _taylor(study.influence),
        "truth": _truth(study),
        "self": _self(study),
        "checkpoints": _checkpoints(study),
    }


def _agreement(influence: Influence) -> list[Drawing]:
    pairs = list(combinations(influence.scores, 2))
    if not pairs:
        return []
    found = [
        _drawing(
            lambda: plots.agreement(influence, width=_WIDTH),
            "agreement",
            "Spearman's rank correlation of each pair of methods: its mean over test examples.",
        )
    ]
    for n, pair in enumerate(pairs[:_PAIRS]):
        figure = drawn(lambda pair=pair: plots.scatter(influence, pairs=[pair], width=_WIDTH))  # type: ignore[misc]
        caption = f"{pair[1]} against {pair[0]}: a dot is one training and one test example."
        svg = inline(figure, f"scatter-{n}", caption)
        found.append(Drawing(svg, caption, hover(figure, influence, pair)))
    return found


def _completeness(influence: Influence) -> list[Drawing]:
    return [
        _drawing(
            lambda method=method: plots.completeness(influence, methods=[method], width=_WIDTH),  # type: ignore[misc]
            f"completeness-{n}",
            f"{method}: bars to the right lower the test value, bars to the left raise it; they "
            "add up to the measured drop. Hatched: what the method leaves unexplained.",
        )
        for n, method in enumerate(influence.terms)
    ]


def _taylor(influence: Influence) -> list[Drawing]:
    """Return the gap in the mean, and of the test example that is missed most."""
    if not influence.terms:
        return []
    caption = (
        "The test value over the run; its drop so far, measured and as predicted step by step; and "
        "the gap between the two at each step."
    )
    mean = _drawing(lambda: plots.taylor_gap(influence, width=_WIDTH), "taylor", caption)
    worst = misses(influence)[:1] if len(influence.test_ids) > 1 else []
    return [
        mean,
        *(
            _drawing(
                lambda one=one: plots.taylor_gap(  # type: ignore[misc]
                    influence, test_id=one.test_id, width=_WIDTH
                ),
                "taylor-worst",
                f"The same for test example {one.test_id}. {one.says}",
            )
            for one in worst
        ),
    ]


def _truth(study: Study) -> list[Drawing]:
    influence, truth = study.influence, study.truth
    if truth is None:
        return []
    found = [
        _drawing(
            lambda: plots.against_truth(influence, truth, width=_WIDTH),
            "truth",
            "How well each method foretells the runs: mean over test examples and its 95 % "
            "interval; a faint dot is one test example.",
        )
    ]
    for n, method in enumerate(influence.scores):
        caption = f"{method}: a dot is one run and one test example."
        found.append(
            _drawing(
                lambda method=method: plots.foretold(  # type: ignore[misc]
                    influence, truth, methods=[method], width=_WIDTH
                ),
                f"foretold-{n}",
                caption,
            )
        )
    return found


def _checkpoints(study: Study) -> list[Drawing]:
    sweep = study.sweep
    if sweep is None:
        return []
    return [
        _drawing(
            lambda against=against: plots.checkpoint_error(  # type: ignore[misc]
                sweep, against=against, width=_WIDTH
            ),
            f"checkpoints-{n}",
            f"Error of the sum over checkpoints against {against}, by their number and placement: "
            "median over test examples, and quartiles.",
        )
        for n, against in enumerate(sweep.errors)
    ]


def _self(study: Study) -> list[Drawing]:
    found = study.self_influence
    if found is None:
        return []
    caption = "The training examples that moved their own loss most."
    return [_drawing(lambda: plots.self_influence(found, width=_WIDTH), "self", caption)]


def over_time(study: Study, test_id: ID) -> list[Drawing]:
    """Return when the strongest examples of a test example earned their scores, if that is known.

    Its learning rates are the log's, if that is at hand.
    """
    influence = study.influence
    if not influence.by_period:
        return []
    method = reference(influence.scores)
    method = method if method in influence.by_period else next(iter(influence.by_period))
    rates = None if study.run is None else study.run.rates
    name = f"time-{influence.row(test_id)}"
    return [
        _drawing(
            lambda: plots.over_time(
                influence, test_id, method=method, learning_rates=rates, width=_WIDTH
            ),
            name,
            "What the strongest examples had earned by each step.",
        )
    ]


def _drawing(draw: Callable[[], Figure], name: str, caption: str) -> Drawing:
    return Drawing(inline(drawn(draw), name, caption), caption)
