"""Score tables of parts of a question add up to the table of all of it."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

from replay import Replay
from replay.evaluate.chunks import placed
from replay.methods.table import METHODS
from replay.progress import Progress
from replay.session.question import Question
from replay.session.run_pass import RunPass
from replay.session.score_tables import ScoreTables
from tests.helpers.rules import BY_NAME, trace

WALKING = tuple(name for name, method in METHODS.items() if method.walks)
ACCOUNTING = tuple(name for name, method in METHODS.items() if method.about.accounts)


@pytest.fixture
def run(tmp_path):
    traced = trace(tmp_path / "run.h5", BY_NAME["sgd"], steps=7)
    return Replay(traced.path, task=traced.task)


def question(run, methods=WALKING):
    rest = {"checkpoints": 1, "train_ids": None, "steps": None, "parameters": None}
    more = {"ideal_tolerance": 1e-3, "by": 2, "allow_mismatch": False}
    return Question.of(run.log, run.task, [0, 1], methods=methods, **rest, **more)


def filled(run, asked, parts):
    """Return one table for each part: some steps, and some of the chunks of one example."""
    found = []
    with run._run.computing(), Progress(enabled=False) as shown:
        chunks = list(placed(run._run.chunks.of(asked.test_ids, "test", most=1)))
        for steps, some in parts:
            tables = ScoreTables(asked)
            for rows, chunk in chunks[some]:
                tape = run._run.tape(steps, shown, **asked.tape)
                for step in RunPass(tape, chunk, replace(asked, steps=steps)).steps():
                    tables.add_step(rows, step.index, step.ids, step.row())
            found.append(tables)
    return found


def arrays(tables):
    result = tables.influence({})
    terms = {f"{m} {n}": v for m, some in result.terms.items() for n, v in some.items()}
    parts = {f"{m} by period": v for m, v in result.by_period.items()}
    return {**result.scores, **parts, **terms, **result.quadrature, **result.drops}


def test_chunks_of_test_examples_add_up_bitwise(run):
    asked, all_steps = question(run), range(7)
    whole, first, rest = filled(
        run, asked, [(all_steps, slice(2)), (all_steps, slice(1)), (all_steps, slice(1, 2))]
    )
    expected = arrays(whole)
    for both in (first + rest, rest + first):
        for name, values in arrays(both).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_windows_of_steps_add_up(run):
    asked = question(run, ACCOUNTING)  # others are of another end in each window
    whole, early, late = filled(
        run, asked, [(range(a, b), slice(2)) for a, b in ((0, 7), (0, 3), (3, 7))]
    )
    expected, found = arrays(whole), arrays(early + late)
    for name in asked.methods:
        np.testing.assert_allclose(found[name.name], expected[name.name], rtol=1e-12, atol=1e-15)
    for name in found.keys() - set(WALKING):  # by step: nothing is added
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_other_questions_are_refused(run):
    with pytest.raises(ValueError, match="different questions"):
        ScoreTables(question(run)) + ScoreTables(question(run, WALKING[:1]))


@pytest.mark.parametrize(("kind", "said"), [("torch.bfloat16", True), ("torch.float32", False)])
def test_scores_that_cancel_to_less_than_half_precision_tells(run, kind, said):
    asked = question(run, ("tracin",))
    tables = ScoreTables(asked)
    with run._run.computing(), Progress(enabled=False) as shown:
        chunk = next(placed(run._run.chunks.of(asked.test_ids, "test", most=2)))
        tape = run._run.tape(asked.steps, shown, **asked.tape)
        for step in RunPass(tape, chunk[1], asked).steps():
            row = step.row()
            row["credits/tracin"][0] += 1e3
            row["credits/tracin"][1] -= 1e3
            tables.add_step(chunk[0], step.index, step.ids, row)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tables.influence({"gradient_dtype": kind, "update_rule": "Adam"})
    message = (
        r"tracin scores of test example .* cancel to steps that move its loss by 0\..*\n  1\. "
    )
    assert [bool(re.match(message, str(one.message))) for one in found] == [True] * said
