"""Update rules that users write: the one in the docs, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from replay import Filter, Replay, UpdateRule
from tests.helpers import rules
from tests.helpers.comparing import compare
from tests.helpers.rules import Rule, trace
from tracer.errors import InputError, MismatchError, UnsupportedRuleError

PAGE = Path(__file__).parents[3] / "docs/how-to/optimizers.md"
_, CODE = PAGE.read_text().split("from replay import Filter, UpdateRule\n")
WRITTEN = {"torch": torch, "Filter": Filter, "UpdateRule": UpdateRule, "__name__": "theirs"}
exec(CODE.partition("torch.manual_seed")[0], WRITTEN)
LION = Rule("lion", WRITTEN["Lion"], {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)})
LION_RULE = WRITTEN["LionRule"]()


@pytest.mark.parametrize(
    ("scheduled", "clip", "accumulate", "before"),
    [(False, None, False, 0), (False, 0.3, True, 4), (True, None, False, 4), (True, 0.3, True, 0)],
)
def test_the_rule_in_the_docs_equals_the_reference(tmp_path, scheduled, clip, accumulate, before):
    loop = {"scheduled": scheduled, "clip": clip, "accumulate": accumulate, "before": before}
    run = trace(tmp_path / "run.h5", LION, steps=3, **loop)
    name = ("Lion", "theirs.Lion")[accumulate]  # with its module or without
    found = compare(run, rules.clip_factors(run, clip), rules={name: LION_RULE})
    said = "the sizes of what signs were taken of; factors of clipping, if any"
    assert found.attributes["as_in_the_run"] == said
    assert f"as in the run {said}" in " ".join(repr(found).split())


class Slow(type(LION_RULE)):
    """Forgets the momentum."""

    def step(self, now):
        move, state = super().step(now)
        return Filter(move.direct, post=move.post), state


def test_a_wrong_rule_is_an_error_that_names_the_step(tmp_path):
    run = trace(tmp_path / "run.h5", LION, steps=3)
    with pytest.raises(MismatchError, match="step 0 of .* does not reproduce"):
        Replay(run.path, run.task, rules={"Lion": Slow()}).verify(progress=False)


def test_what_a_rule_does_for_other_methods(tmp_path):
    run = trace(tmp_path / "run.h5", LION, steps=3)
    replay = Replay(run.path, run.task, rules={"Lion": LION_RULE, "Other": LION_RULE})
    assert str(replay.verify(progress=False)).startswith("steps 0:3 reproduce")
    with pytest.raises(UnsupportedRuleError, match=r"theirs\.Lion, whose update unrolled cannot"):
        replay.influence([0], methods=("unrolled",), progress=False)
    with pytest.raises(UnsupportedRuleError, match=r"(?s)cannot be split.*2\. or say how .*rules="):
        Replay(run.path, run.task).influence([0], methods=("tracin",), progress=False)


@pytest.mark.parametrize("given", [LION_RULE, {"Lion": type(LION_RULE)}, {3: LION_RULE}, "Lion"])
def test_rules_that_are_none(tmp_path, given):
    run = trace(tmp_path / "run.h5", rules.BY_NAME["sgd"], steps=1)
    with pytest.raises(InputError, match=r"rules must be a mapping .*\n  1\. Pass rules="):
        Replay(run.path, run.task, rules=given)
