"""What the main job prints: tables that fit, lines under them, a verdict from the numbers."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from replay import Replay
from replay.command.show.agreement import agreement_tables
from replay.command.show.completeness import completeness_table
from replay.command.show.influence import header, report, to_json
from replay.command.show.ranking import ranking
from replay.command.show.self_influence import self_report
from replay.results.agreement import METRICS
from replay.results.self_influence import SelfInfluence
from replay.results.verdict import verdict
from replay.session.step_result import TERMS
from tests.helpers.cases import Case, mlp
from tests.helpers.results import made


def text(shown, width=80):
    """Return what a terminal of some width shows."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def nothing(_):
    return None


def only(found, *methods):
    """Return a result of some methods; of others, copies of the first."""

    def some(table):
        return {name: table.get(name, next(iter(table.values()))) for name in methods}

    walked = [name for name in methods if name != "tracincp"]
    terms = {name: found.terms.get(name, found.terms["tracin"]) for name in walked}
    return replace(found, scores=some(found.scores), terms=terms)


def explained(*, measured, **found):
    """Return a result of two steps that measured drops, and by method what it explains."""
    measured = np.array(measured, dtype=float)
    result, m = made(), len(measured)
    zero = np.zeros((2, m))
    terms = {}
    for name, values in found.items():
        explains = np.array(values, dtype=float)
        terms[name] = dict.fromkeys(TERMS, zero) | {
            "data": np.stack([explains, 0 * explains]),
            "residual": np.stack([measured - explains, 0 * measured]),
            "measured": np.stack([3 * measured, -2 * measured]),
        }
    ids = list(range(m))
    scores = {name: np.ones((m, 6)) for name in found}
    return replace(result, test_ids=ids, scores=scores, terms=terms, quadrature={})


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "methods",
    [
        ("tracin", "ideal", "tracincp", "tracin-sgd"),
        ("tracin", "ideal", "tracincp"),
        ("tracincp",),
        ("ideal",),
    ],
    ids=len,
)
def test_report_fits(width, methods):
    found = only(made("image-{}".format), *methods)
    shown = text(report(found, describe_test=lambda _: "a [cat]", describe_train=nothing), width)
    assert max(map(len, shown.splitlines())) <= width
    for part in ("positive = proponent", "test example image-7: a [cat]", "opponents", "Verdict"):
        assert part in shown
    assert ("Agreement: median over 2 test examples [quartiles]" in shown) == (len(methods) > 1)
    assert ("Completeness" in shown) == (methods != ("tracincp",))
    assert "..." not in shown
    assert "…" not in shown


def test_each_table_has_one_line_under_it():
    lines = text(report(made(), describe_test=nothing, describe_train=nothing)).splitlines()
    ends = [k for k, line in enumerate(lines) if line.startswith("└")]
    assert len(ends) == 4
    for k in ends:
        assert lines[k + 1].strip().endswith(".")
        assert not lines[k + 2].strip()


def test_one_test_example_has_no_quartiles():
    found = explained(measured=[2], tracin=[1], ideal=[2])
    shown = text(report(found, describe_test=nothing, describe_train=nothing))
    assert "Agreement: test example 0" in [line.strip() for line in shown.splitlines()]
    assert "[" not in shown
    assert "mean over" not in shown


def test_more_test_examples_than_are_shown():
    found = explained(measured=[1, 2, 3, 4, 5], tracin=[1, 2, 3, 4, 5])
    shown = text(report(found, describe_test=nothing, describe_train=nothing))
    assert "test example 2" in shown
    assert "test example 3" not in shown
    assert "2 more test examples are in the result file." in shown


def test_long_labels_are_cut():
    label = "once upon a time\nthere was " + "a sentence " * 9
    shown = text(ranking(made(), 7, nothing, lambda _: label, 2))
    assert "(once upon a time there was a sentence..." in text(
        ranking(made(), 7, nothing, lambda _: label, 2), 200
    )
    assert max(map(len, shown.splitlines())) <= 80


def test_ratio_of_totals_only_where_they_do_not_cancel():
    found = made()
    table = {"tracin": np.array([[1.0, 2, 3, 4, 5, 6]] * 2)}
    table |= {"ideal": 2 * table["tracin"], "tracincp": np.array([[5.0, -5, 1, -1, 0.2, 0]] * 2)}
    shown = text(agreement_tables(replace(found, scores=table)))
    (row,) = (line for line in shown.splitlines() if "│ ratio of totals" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "2",
        "totals cancel",
        "totals cancel",
    ]
    assert "ratio of totals: of their sums." in shown
    del table["ideal"]
    shown = text(agreement_tables(replace(found, scores=table)))
    assert "ratio of totals" not in shown


def test_completeness_shows_what_else_moved_the_model(tmp_path):
    """Momentum from before the window, weight decay: rows that add up to the measured drop."""
    case = Case("decayed", mlp, options={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05})
    run = Replay(tmp_path / "run.h5", task=case.trace(tmp_path / "run.h5"))
    found = run.influence([0, 1], methods=("tracin", "ideal"), steps="3:6", progress=False)
    shown = text(completeness_table(found), 100)
    assert "Completeness: steps 3:6, mean over 2 test examples" in shown
    lines = [line.strip("│ ").split("│") for line in shown.splitlines()]
    cells = {row[0].strip(): [x.strip() for x in row[1:]] for row in lines if len(row) == 3}
    terms = [term for term in TERMS if term not in ("elsewhere", "buffers")]  # both are 0 here
    signs = ["", *["+ "] * (len(terms) - 2), "= "]
    labels = [sign + term for sign, term in zip(signs, terms, strict=True)]
    how = ["steps that meet the drop", "splits within 0.001", "split error (median)"]
    how += ["test gradients a step"]
    assert list(cells) == [*labels, "largest |residual| of a step", *how]
    assert all(cells[label][0] == "" for label in how)  # tracin does not refine
    for label, term in zip(labels, terms, strict=True):
        means = [found.completeness[method][term].mean() for method in found.terms]
        assert [*map(float, cells[label])] == pytest.approx(means, rel=1e-3), term
    for k in (0, 1):
        assert all(float(cells[f"+ {term}"][k]) for term in ("history", "regulariser"))
        added = sum(float(cells[label][k]) for label in labels[:-1])
        assert added == pytest.approx(float(cells["= measured"][k]), rel=1e-2)


def test_a_term_that_cancels_is_not_left_out():
    found = explained(measured=[2, 3], tracin=[1, 2])
    found.terms["tracin"]["history"] = np.array([[1.0, 1.0], [-1.0, -1.0]])
    shown = text(completeness_table(found))
    assert "+ history" in shown
    for term in ("regulariser", "buffers", "rounding"):
        assert term not in shown


def test_examples_that_did_nothing_are_left_out():
    """Only what lowered a loss is a proponent, only what raised it an opponent."""
    found = made()
    scores = {"tracin": np.array([[0.0, 2, 1, 0, -3, 0]] * 2), "ideal": np.zeros((2, 6))}
    shown = text(ranking(replace(found, scores=scores), 7, nothing, nothing, 5))
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in shown.splitlines()]
    assert [row for row in rows if row] == [
        ["tracin", "1", "2", "4", "-3"],
        ["", "2", "1", "", ""],
        ["ideal", "", "", "", ""],
    ]


def test_self_influence_leaves_out_what_did_nothing():
    scores = {"self": np.array([0.0, 2.0]), "own_drop": np.array([0.0, 1.0])}
    facts = {"log": "run.h5", "window": "0:4", "update_rule": "SGD"}
    found = SelfInfluence([8, 9], scores, np.array([0, 3]), facts)
    shown = text(self_report(found, describe=nothing))
    assert "│ 9 " in shown
    assert "│ 8 " not in shown
    assert "own drop: the whole steps; loss: the baseline." in shown.splitlines()[-1]


def test_ranking_says_whom_methods_share():
    found = replace(made(), scores={
        "tracin": np.array([[3.0, 2, 1, -1, 0, 0]] * 2),
        "ideal": np.array([[3.0, -2, 1, 2, 0, 0]] * 2),
        "tracincp": np.array([[-3.0, 2, -1, -1, 0, 9]] * 2),
    })  # fmt: skip
    shown = text(ranking(found, 7, nothing, nothing, 5))
    assert "ideal's top 3 proponents are named: 2 by tracin, 0 by tracincp." in shown


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            {"measured": [7.9], "tracin": [4.2], "ideal": [7.9]},
            "first order (tracin) explains 4.2 of 7.9 (53.2 %); off by over 10 %: "
            "where they differ, trust ideal.",
        ),
        (
            {"measured": [-7.9], "tracin": [-4.2], "ideal": [-7.9]},
            "first order (tracin) explains -4.2 of -7.9 (53.2 %); off by over 10 %: "
            "where they differ, trust ideal.",
        ),
        (
            {"measured": [1], "tracin": [5], "ideal": [1]},
            "first order (tracin) predicts a drop of 5, 5 times the measured 1; off by over 10 %: "
            "where they differ, trust ideal.",
        ),
        (
            {"measured": [1], "tracin": [-2], "ideal": [1]},
            "first order (tracin) predicts a drop of -2, measured was 1; off by over 10 %: "
            "where they differ, trust ideal.",
        ),
        (
            {"measured": [0], "tracin": [2], "ideal": [0]},
            "first order (tracin) predicts a drop of 2, measured was 0; off by over 10 %: "
            "where they differ, trust ideal.",
        ),
        (
            {"measured": [2], "tracin": [1.96], "ideal": [2]},
            "first order (tracin) explains 1.96 of 2 (98 %); within 10 %.",
        ),
        (
            {"measured": [2], "tracin": [1]},
            "first order (tracin) explains 1 of 2 (50 %); off by over 10 %: compute ideal as well.",
        ),
        ({"measured": [2], "ideal": [2]}, "ideal explains 2 of 2 (100 %)."),
        (
            {"measured": [2], "tracin": [1], "ideal": [-1]},
            "first order (tracin) explains 1 of 2 (50 %); ideal itself leaves 3 open.",
        ),
        (
            {"measured": [2], "tracin-sgd": [1], "ideal": [2]},
            "tracin-sgd explains 1 of 2 (50 %); off by over 10 %: where they differ, trust ideal.",
        ),
        ({"measured": [2], "later": [1], "ideal": [2]}, "later explains 1 of 2 (50 %); off by"),
    ],
    ids=[
        *("explains", "rises", "overshoots", "wrong sign", "nothing", "agrees", "alone", "ideal"),
        *("worse", "paper", "unknown"),
    ],
)
def test_verdict(found, line):
    (said,) = verdict(explained(**found))
    assert said.startswith(f"Verdict: {line}")


def test_verdict_over_many_test_examples():
    found = explained(measured=[2, 4, -3], tracin=[2, 3, -1], ideal=[2, 4, -3])
    assert verdict(found) == [
        "Verdict (mean over 3 test examples): first order (tracin) predicts a drop of 1.333, 1.3 "
        "times the measured 1; off by over 10 % for 2 of 3: where they differ, trust ideal."
    ]
    found = explained(measured=[2, 4], tracin=[2, 4.1], ideal=[2, 4])
    assert verdict(found)[0].endswith("(102 %); within 10 % for every test example.")


def test_verdict_without_anything_measured():
    (said,) = verdict(replace(made(), terms={}))
    assert said == (
        "Verdict: nothing here was compared with measured drops; compute tracin or ideal as well."
    )


def test_json_is_plain():
    found = json.loads(json.dumps(to_json(made()), allow_nan=False))
    assert found["test_ids"] == [7, 3]
    assert len(found["agreement"]) == 3 * len(METRICS)
    assert len(found["completeness"]["ideal"]["residual"]) == 2
    assert found["top"]["tracin"][0]["test"] == 7
    assert found["verdict"] == verdict(made())


def test_medians_say_of_how_many_test_examples():
    found = made()
    found.scores["tracincp"][0] = 1.0  # a constant row has no correlation
    shown = text(agreement_tables(found), 100)
    assert (
        shown.count("for 1 of 2") == 8
    )  # three correlations and the ratio of totals, of two pairs
    assert "n/a" not in shown
    assert "top-" not in shown  # of all training examples: always the same ones


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"checkpoints": "1 2 3", "checkpoints_asked": "1000"}, "3 (1000 asked for): before steps"),
        ({"checkpoints": "1 2 3", "checkpoints_asked": "3"}, "3: before steps 1, 2, 3"),
        ({"checkpoints": "1 2 3 4 5", "checkpoints_asked": "all"}, "5 (all asked for): before"),
        ({"checkpoints": "1 2 3 4 5"}, "5: before steps 1, 2, 3 ... 5"),  # an earlier result
    ],
)
def test_the_header_says_how_many_checkpoints_were_used(facts, shown):
    found = made()
    found.attributes.update(facts)
    assert shown in text(header(found), 100)


def test_checkpoints_that_were_asked_for_are_kept(tmp_path):
    run = Replay(tmp_path / "run.h5", task=Case("short", mlp).trace(tmp_path / "run.h5"))
    facts = run.influence([0], methods="tracincp", checkpoints=1000, progress=False).attributes
    assert facts["checkpoints"] == "0 1 2 3 4 5 6"
    assert facts["checkpoints_asked"] == "1000"
