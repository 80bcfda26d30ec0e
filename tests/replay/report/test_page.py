"""The page: its numbers are the result's, and whatever a result holds, it is a good page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from replay import Influence, Task
from replay.report import RunFacts, Study, figures, page, run_facts
from replay.report.pictures import addresses
from tests.helpers.cases import CASES
from tests.helpers.results import adding_up, left_out, of_themselves, swept
from tracer.errors import TaskError

EMPTY = {"meta", "link", "img", "br", "path", "use", "rect", "image", "input"}
HOSTILE = "<script>alert(1)</script></style>\"'&{{ 7 * 7 }}\u202e\x1b"


class Reader(HTMLParser):
    """Reads a page: its tables by name, its text, its elements that may fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.text, self.open = {}, "", []
        self.named = self.script = None
        self.scripts, self.addresses, self.pictures = [], [], []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        if tag == "div" and told.get("class") == "scroll" and told.get("aria-label"):
            self.named = self.tables.setdefault(told["aria-label"], [])
        if tag == "tr" and self.named is not None:
            self.named.append([])
        if "data-value" in told:
            self.named[-1].append(told["data-value"])
        self.addresses += [told[n] for n in ("src", "href", "xlink:href") if told.get(n)]
        assert not any(name.startswith("on") for name in told)
        if tag == "img":
            self.pictures.append(told["src"])
        if tag == "script":
            self.scripts.append([told.get("type"), ""])
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag not in EMPTY:
            self.handle_starttag(tag, attributes)
            self.open.pop()
        else:
            self.addresses += [v for n, v in attributes if n in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def rows(self, name):
        """Return the rows of a table, without its head."""
        return [row for row in self.tables[name] if row]


def read(study):
    text = page(study)
    found = Reader(text)
    assert "\ufeff" not in text
    assert len(text) < 5_000_000
    assert all(a.startswith(("data:", "#")) for a in found.addresses), "nothing is fetched"
    kinds = [kind for kind, _ in found.scripts]
    assert kinds.count(None) == 1, "one script runs"
    return found


def studied(ids=int, **more):
    """Return a study with everything in it."""
    found = adding_up(ids)
    data = {ids(k): (np.full((4, 3), k / 10), f"a {k}") for k in range(10)}
    task = Task(lambda: None, lambda *_: None, data, data, show=lambda example: example)
    run = RunFacts({ids(k): k + 1 for k in range(6)}, np.array([0.1, 0.1, 0.05, 0.05]))
    everything = {
        "truth": left_out(found),
        "sweep": swept(found),
        "self_influence": of_themselves(found.train_ids),
        "task": task,
        "run": run,
    }
    return Study(found, **{**everything, **more})


def test_numbers_are_those_of_the_result():
    study = studied(k=2)
    found, shown = study.influence, read(study)
    rows = shown.rows("what each method accounts for")
    for j, (identity, measured, *accounts) in enumerate(rows):
        assert identity == str(found.test_ids[j])
        assert float(measured) == found.completeness["ideal"]["measured"][j]
        for n, terms in enumerate(found.completeness.values()):
            explained, residual = map(float, accounts[2 * n : 2 * n + 2])
            assert residual == terms["residual"][j]
            assert explained == terms["measured"][j] - terms["residual"][j]
    wanted = [r for r in found.agreement().rows if r.metric != "total_ratio"]
    listed = [r for r in shown.rows("agreement") if r[2] != "ratio of totals"]
    for comparison, row in zip(wanted, listed, strict=True):
        assert tuple(row[:2]) == comparison.pair
        numbers = [comparison.mean, *comparison.interval(), comparison.median]
        assert np.array_equal(list(map(float, row[3:7])), numbers, equal_nan=True)
    truth = found.agreement(truth=study.truth)
    first = shown.rows("agreement with the runs")[0]
    assert float(first[3]) == truth.get((first[0], first[1]), "pearson").mean
    for test in found.test_ids:
        for kind, rank in (("proponents", found.top), ("opponents", found.bottom)):
            ids, scores = rank(test, method="ideal", k=2)
            sign = 1 if kind == "proponents" else -1
            kept = [(i, s) for i, s in zip(ids, scores, strict=True) if sign * s > 0]
            rows = shown.rows(f"{kind} of test example {test}")
            assert [(row[0], float(row[2])) for row in rows] == [(str(i), s) for i, s in kept]
            row_of = found.test_ids.index(test)
            for row, (identity, _) in zip(rows, kept, strict=True):
                column = found.train_ids.index(identity)
                others = [table[row_of, column] for table in found.scores.values()]
                assert list(map(float, row[1:4])) == others
                assert row[4] == str(identity + 1), "visits"
    assert "How many checkpoints, and where" in shown.text
    own = study.self_influence
    rows = shown.rows("largest self-influence")
    assert [row[0] for row in rows] == list(map(str, own.top(20)[0]))
    assert [float(row[1]) for row in rows] == own.top(20)[1].tolist()
    dots = [json.loads(text) for kind, text in shown.scripts if kind == "application/json"]
    assert len(dots) == 3
    for one in dots:
        x, y = (found.scores[name] for name in one["names"])
        assert one["a"] == x.ravel().tolist()
        assert one["b"] == y.ravel().tolist()
        pairs = [(str(t), str(z)) for t in found.test_ids for z in found.train_ids]
        assert list(zip(one["test"], one["train"], strict=True)) == pairs
        assert np.corrcoef(one["x"], one["a"])[0, 1] > 0.999
        assert np.corrcoef(one["y"], one["b"])[0, 1] < -0.999


@pytest.fixture
def tables_alone(monkeypatch):
    """Pages without figures, which take long."""
    monkeypatch.setattr(figures, "_drawing", lambda *_: figures.Drawing("", "caption"))
    monkeypatch.setattr(figures, "_agreement", lambda *_: [])


@pytest.mark.usefixtures("tables_alone")
def test_what_first_order_misses_strikes_the_eye():
    found = adding_up()
    for terms in found.terms.values():
        terms["measured"] = np.array([[-0.13, 1.0], *[[0.0, 0.0]] * 3])
        terms["residual"] = 0 * terms["measured"]
    found.terms["tracin"]["residual"] = np.array([[-4.33, 0.0], *[[0.0, 0.0]] * 3])
    shown = read(Study(found))
    assert "1 of 2 test examples are off by more than 10 % of what was measured" in shown.text
    assert "tracin accounts for a fall of 4.2; the test value rose by 0.13." in shown.text
    assert "+4.2 tracin accounts for" in shown.text
    assert "−0.13 was measured" in shown.text
    assert "A first-order method takes the test value to be straight" in shown.text
    assert "leaves out what the optimizer made" not in shown.text
    terms = {**found.terms, "tracin-sgd": found.terms["tracin"]}
    assert "tracin-sgd also leaves out what" in read(Study(replace(found, terms=terms))).text
    found.terms["tracin"]["residual"] = 0 * found.terms["tracin"]["residual"]
    assert "first-order method takes" not in read(Study(found)).text


@pytest.mark.usefixtures("tables_alone")
@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({}, "Proved. Every step was computed again and compared with the log: 4 steps"),
        ({"steps_proved": 4, "steps_not_proved": 0}, "4 of them bit for bit by their digest"),
        (
            {"steps_not_proved": 2, "first_step_not_proved": 1, "largest_drift": 0.25},
            "Not proved. 2 steps that were taken again are not the run's to the last bit, from "
            "step 1 on; the snapshots were missed by at most 0.25 of the way",
        ),
    ],
)
def test_whether_every_step_is_proved(facts, says):
    found = adding_up(periods=())
    for terms in found.terms.values():
        terms["rounding"] = 0 * terms["rounding"]
    found.attributes.update(facts)
    assert says in " ".join(read(Study(found)).text.split())


@pytest.mark.usefixtures("tables_alone")
def test_rounding_that_no_float_leaves_is_said():
    text = " ".join(read(Study(adding_up(periods=()))).text.split())
    assert "Not proved. What the replay computed differs from the log by up to" in text
    assert "--allow-mismatch" in text


@pytest.mark.usefixtures("tables_alone")
def test_a_tolerance_that_is_not_met_is_said():
    found = adding_up(periods=())
    found.attributes["ideal_tolerance"] = 1e-3
    found.quadrature["split_error"][0] = 5e-4, 2e-3
    text = " ".join(read(Study(found)).text.split())
    assert "ideal: 0.001; 1 of 8 splits may be off by more, with as many gradients as" in text
    found.quadrature["split_error"][0] = 5e-4
    assert "Tolerance of ideal" not in read(Study(found)).text


@pytest.mark.usefixtures("tables_alone")
@pytest.mark.parametrize(("allowed", "says"), [(0, "Proved. Every step"), (1, "Not proved. The")])
def test_what_was_allowed_counts_whatever_the_size_of_rounding(allowed, says):
    """Muon's steps in bfloat16 leave 2e-3; a mismatch may leave less."""
    for scale in (1.0, 0.0):
        found = adding_up(periods=())
        found.attributes["allow_mismatch"] = allowed
        for terms in found.terms.values():
            terms["rounding"] = scale * terms["rounding"]
        text = " ".join(read(Study(found)).text.split())
        assert says in text
        assert ("--allow-mismatch), and no step was refused" in text) == bool(allowed)


def only_checkpoints(found):
    return replace(found, scores={"tracincp": found.scores["tracincp"]}, terms={}, drops={})


def one_test(found):
    rows = {name: table[:1] for name, table in found.scores.items()}
    terms = {m: {t: v[:, :1] for t, v in some.items()} for m, some in found.terms.items()}
    values = {name: v[:1] for name, v in found.values.items()}
    parts = {name: part[:1] for name, part in found.by_period.items()}
    more = {"terms": terms, "values": values, "by_period": parts}
    return replace(found, test_ids=found.test_ids[:1], scores=rows, **more)


def not_finite(found):
    for table in found.scores.values():
        table[0, :] = np.nan
        table[1, 2] = np.inf
    found.terms["tracin"]["data"][2] = np.nan
    found.terms["ideal"]["residual"][1] = np.inf
    return found


def without_values(found):
    return replace(found, values={}, steps=[], by_period={}, period_of_step=np.zeros(0, int))


@pytest.mark.parametrize(
    "change", [only_checkpoints, one_test, not_finite, without_values], ids=lambda f: f.__name__
)
def test_every_result_is_a_good_page(change):
    found = change(adding_up())
    shown = read(Study(found))
    assert "Proponents and opponents" in shown.text
    assert ("Does it add up?" in shown.text) == bool(found.terms)
    assert ("Agreement of the methods" in shown.text) == (len(found.scores) > 1)
    assert "nan" not in shown.text.lower().replace("dominant", "")
    assert "IDs alone: no task (none was given)" in shown.text


def test_hostile_text_stays_text():
    study = studied(lambda k: f"{HOSTILE} {k}")
    show = SimpleNamespace(show=lambda example: HOSTILE * 200, train=study.task.train)
    task = replace(study.task, show=show.show)
    text = page(replace(study, task=task))
    shown = Reader(text)
    assert [kind for kind, _ in shown.scripts].count(None) == 1
    assert text.count("</style>") == 1
    assert "<script>alert" not in text
    assert "{{ 7 * 7 }}" in text
    assert "49" not in re.findall(r"alert\(1\).{0,40}", text)
    assert "\x1b" not in text
    assert "more characters" in text


def test_many_examples_make_a_small_page_soon():
    random = np.random.default_rng(0)
    m, n, steps = 20, 10_000, 50
    terms = {"data": random.normal(size=(steps, m)), "residual": random.normal(size=(steps, m))}
    terms["measured"] = terms["data"] + terms["residual"]
    terms["rounding"] = 0 * terms["data"]
    found = Influence(
        test_ids=list(range(m)),
        train_ids=list(range(n)),
        scores={name: random.normal(size=(m, n)) for name in ("tracin", "tracincp")},
        drops={},
        terms={"tracin": terms},
        quadrature={},
        attributes={"unit": "nats"},
        steps=list(range(steps)),
    )
    noise = random.integers(0, 255, (m, 300, 200, 3), dtype=np.uint8)
    data = {k: noise[k % m] for k in range(n)}
    task = Task(lambda: None, lambda *_: None, data, data, show=lambda example: example)
    shown = read(Study(found, task=task))
    assert len(shown.pictures) > 20 * 10


def test_pictures_shrink_until_they_fit():
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    large, small = (sum(map(len, addresses([noise] * 2, size))) for size in (300_000, 60_000))
    assert small < 60_000 < large < 300_000


@pytest.mark.usefixtures("tables_alone")
def test_a_task_shows_what_it_returns():
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    shows = {"text": "a cat", "image": image, "both": (image, "label 3"), "number": 7}
    for name, value in shows.items():
        study = studied()
        shown = read(replace(study, task=replace(study.task, show=lambda _, v=value: v)))
        assert ("a cat" in shown.text) == (name == "text")
        assert ("label 3" in shown.text) == (name == "both")
        assert bool(shown.pictures) == (name in ("image", "both"))

    def fails(example):
        raise KeyError("pixels")

    study = studied()
    with pytest.raises(TaskError, match="task.show failed at the test example 7: KeyError") as told:
        page(replace(study, task=replace(study.task, show=fails)))
    assert "--task" in str(told.value)


def test_the_log_says_visits_and_rates(tmp_path):
    case = CASES[0]
    case.trace(tmp_path / "run.h5")
    from replay import Replay

    run = Replay(tmp_path / "run.h5", task=case.trace(tmp_path / "other.h5"))
    found = replace(adding_up(periods=()), steps=[1, 2])
    found.attributes.update(log=str(tmp_path / "run.h5"), run_uuid=run.log.metadata["run_uuid"])
    facts = run_facts(found)
    visited = [i for t in (1, 2) for i in run.log.batch_ids(t)]
    assert facts.visits == {i: visited.count(i) for i in visited}
    assert facts.rates.tolist() == [max(run.log.learning_rate(t)) for t in (1, 2)]
    found.attributes["run_uuid"] = "another"
    assert run_facts(found) is None
    found.attributes["log"] = "gone.h5"
    assert run_facts(found) is None


def test_a_notebook_shows_a_few_escaped_lines():
    found = adding_up(lambda k: f"{HOSTILE} {'long' * 100} {k}")
    found.attributes["log"] = HOSTILE * 100
    many = replace(
        found,
        test_ids=[f"<b>{k}" for k in range(100)],
        scores={name: np.tile(table[:1], (100, 1)) for name, table in found.scores.items()},
        terms={},
    )
    for one in (found, many):
        text = one._repr_html_()
        assert "<script>" not in text
        assert "<b>1" not in text
        assert len(text) < 20_000
        Reader(text)
    assert "95 more test examples" in many._repr_html_()
    plain = adding_up()._repr_html_()
    ids, scores = adding_up().top(7, method="ideal", k=1)
    assert f"<td>{ids[0]}: {scores[0]:.4g}<br>" in plain
    assert "proponents by ideal" in plain
