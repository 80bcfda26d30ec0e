"""Text of logs, tasks and examples is shown as it is: it is no markup and steers no terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from replay.command.show.influence import report
from replay.command.show.inspect import inspection, inspection_table
from replay.command.show.plan import plan_table
from replay.command.show.self_influence import self_report
from replay.command.terminal import literal
from replay.results.self_influence import SelfInfluence
from replay.session.plan import ParameterPath
from tests.helpers.results import made
from tests.helpers.training import Run
from tracer import open_log

NASTY = "x[/red][bold]:bug:\x1b[31m\r\x9b"  # rich raises an error at a tag that nothing opened
SHOWN = "x[/red][bold]:bug:\\x1b[31m\\r\\x9b"


def nasty(value):
    """Return the same facts with every text in them nasty."""
    if isinstance(value, dict):
        return {key: nasty(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nasty(item) for item in value]
    return NASTY if isinstance(value, str) else value


def of_log(path):
    Run(path, task="a:b").train(2).close()
    with open_log(path) as log:
        return inspection_table(nasty(inspection(log))), 13


def of_result(_):
    found = made()
    for name in ("scores", "drops", "terms"):
        renamed = {NASTY + key: value for key, value in getattr(found, name).items()}
        found = replace(found, **{name: renamed})
    terms = {method: {NASTY: terms["data"], **terms} for method, terms in found.terms.items()}
    names = ("log", "run_uuid", "sign", "unit", "methods", "checkpoints", "device", "update_rule")
    ids = {"test_ids": [NASTY + "7", "3"], "train_ids": [f"{k}{NASTY}" for k in range(6)]}
    found = replace(found, terms=terms, attributes=dict.fromkeys(names, NASTY), **ids)
    shown = report(found, describe_test=lambda _: NASTY, describe_train=lambda _: NASTY)
    return shown, 60


def of_plan(_):
    return plan_table([ParameterPath(NASTY, [2], NASTY, NASTY)]), 3


def of_self_influence(_):
    scores = {name: np.ones(1) for name in ("self", "own_drop")}
    found = SelfInfluence([NASTY], scores, np.ones(1, int), {"log": NASTY, "window": NASTY})
    return self_report(found, describe=lambda _: NASTY), 4


@pytest.mark.parametrize("make", [of_log, of_result, of_plan, of_self_influence])
def test_text_is_shown_as_it_is(tmp_path, make):
    table, least = make(tmp_path / "run.h5")
    out = io.StringIO()
    Console(file=out, width=1000).print(table)
    text = out.getvalue()
    assert text.count(SHOWN) >= least
    assert not {"\x1b", "\r", "\x9b"} & set(text)


def test_letters_of_any_language_stay():
    text = "é 猫\u200d\u00a0\n[x]"
    assert literal(text).plain == text
