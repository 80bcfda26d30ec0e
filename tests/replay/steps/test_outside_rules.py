"""Rules of other packages' optimizers, against naive ones and forward buffers."""

from __future__ import annotations

import itertools

import pytest

from tests.helpers import rules
from tests.helpers.comparing import compare
from tests.helpers.outside import ROWS
from tests.helpers.rules import Rule, trace

LOOPS = list(itertools.product([False, True], [None, 0.3], [False, True], [0, 4]))


@pytest.mark.parametrize(("scheduled", "clip", "accumulate", "before"), LOOPS)
@pytest.mark.parametrize(("kind", "options"), ROWS, ids=str)
def test_a_rule_from_outside_equals_the_reference(
    tmp_path, kind, options, scheduled, clip, accumulate, before
):
    run = trace(
        tmp_path / "run.h5", Rule("", kind, options), scheduled=scheduled, clip=clip,
        accumulate=accumulate, before=before, steps=3,
    )  # fmt: skip
    how = {"methods": ("tracin",), "rules": {kind.__name__: kind.rule}}
    found = compare(run, rules.clip_factors(run, clip), **how)
    taken = "; ".join([*filter(None, [kind.rule.frozen]), "factors of clipping, if any"])
    assert found.attributes["as_in_the_run"] == taken


def pause(t, optimizer, model):
    """Rates are 0 at two steps, and one parameter has no gradient at two others."""
    for group in optimizer.param_groups:
        rate = group.setdefault("rate", group["lr"])
        group["lr"] = 0.0 if t in {0, 3} else rate
    model[0].bias.requires_grad_(t not in {1, 4})


@pytest.mark.parametrize(("kind", "options"), [ROWS[k] for k in (0, 1, -1)], ids=str)
def test_steps_without_a_rate_or_a_gradient(tmp_path, kind, options):
    """pytorch_optimizer counts steps of the group; Prodigy without a rate looks at nothing."""
    run = trace(tmp_path / "run.h5", Rule("", kind, options), settle=pause)
    how = {"methods": ("tracin",), "rules": {kind.__name__: kind.rule}}
    for window in (None, range(2, 6)):
        compare(run, rules.clip_factors(run, None), window=window, **how)
