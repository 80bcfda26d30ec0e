"""Rules of other packages' optimizers, against naive ones and forward buffers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from replay import Replay
from tests.helpers import rules
from tests.helpers.comparing import compare
from tests.helpers.mixed import ADAMW, Mixed
from tests.helpers.own_states import OPTIONS, ROWS
from tests.helpers.rules import Rule, trace, untraced
from tracer.errors import LogError, UnsupportedRuleError

LOOPS = list(itertools.product([False, True], [None, 0.3], [False, True], [0, 4]))
CASES = [(*row, loop) for row in ROWS for loop in LOOPS]
CASES += [(*row, LOOPS[-1]) for row in OPTIONS]


@pytest.mark.parametrize(("kind", "options", "loop"), CASES, ids=str)
def test_a_rule_from_outside_equals_the_reference(tmp_path, kind, options, loop):
    scheduled, clip, accumulate, before = loop
    run = trace(
        tmp_path / "run.h5", Rule("", kind, options), scheduled=scheduled, clip=clip,
        accumulate=accumulate, before=before, steps=3 + kind.rule.recorded, state_every=1,
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


@pytest.mark.parametrize(("kind", "options"), [ROWS[k] for k in (0, 1, 5, 6)], ids=str)
def test_steps_without_a_rate_or_a_gradient(tmp_path, kind, options):
    """pytorch_optimizer counts steps of the group; Prodigy without a rate looks at nothing."""
    run = trace(tmp_path / "run.h5", Rule("", kind, options), settle=pause, state_every=1)
    how = {"methods": ("tracin",), "rules": {kind.__name__: kind.rule}}
    for window in (None, range(2, 6)):
        compare(run, rules.clip_factors(run, None), window=window, **how)


def frozen_until(first):
    """Return what gives a parameter no gradient before a step."""
    return lambda t, _optimizer, model: model[2].weight.requires_grad_(t >= first)


def test_a_parameter_whose_first_gradient_comes_late(tmp_path):
    """SOAP moves it in a basis that the same step made; one that renewed it, too, left no trace.

    ``eps`` keeps shares small where gradients of the only batch so far cancel.
    """
    kind, options = ROWS[6]
    rule, how = Rule("", kind, {**options, "eps": 1e-3}), {"rules": {"SOAP": kind.rule}}
    run = trace(tmp_path / "run.h5", rule, settle=frozen_until(1), state_every=1)
    compare(run, rules.clip_factors(run, None), methods=("tracin",), **how)
    late = trace(tmp_path / "late.h5", rule, settle=frozen_until(2), state_every=1)
    with pytest.raises(
        UnsupportedRuleError, match=r"(?s)step 2 of .*'2.weight': a parameter \(3, 5\).*1\. Begin"
    ):
        Replay(late.path, late.task, **how).influence([0], methods=("tracin",), progress=False)
    compare(late, rules.clip_factors(late, None), window=range(3, 6), methods=("tracin",), **how)


def test_a_state_that_is_neither_on_file_nor_found_again(tmp_path):
    """SOAP's eigenbases are those of the last bit: another order of a batch is another run."""
    rule, how = Rule("", *ROWS[6]), {"rules": {"SOAP": ROWS[6][0].rule}}

    def in_the_last_bit(_t, _optimizer, model):
        for p in model.parameters():
            p.grad = torch.nextafter(p.grad, p.grad + torch.sign(p.detach()))

    loop = {"steps": 4, "hook": in_the_last_bit}
    run = trace(tmp_path / "run.h5", rule, **loop)
    ends = [untraced(run, **{**loop, "hook": hook})[0] for hook in (None, in_the_last_bit)]
    off = sum(float((ends[0][n] - ends[1][n]).square().sum()) for n in ends[0]) ** 0.5
    begun = run.task.model().state_dict()
    assert off > 0.05 * sum(float((ends[0][n] - begun[n]).square().sum()) for n in begun) ** 0.5
    message = r"(?s)no full state before step \d.*did not lead to it.*1\. Trace .*state_every=1"
    with pytest.raises(LogError, match=message):
        Replay(run.path, run.task, **how).influence([0], methods=("tracin",), progress=False)
    run = trace(tmp_path / "on-file.h5", rule, **loop, state_every=1)
    compare(run, rules.clip_factors(run, None), methods=("tracin",), **how)


def test_beside_another_optimizer_and_in_segments(tmp_path):
    """The state of one of two is the run's own; steps are replayed again from it."""
    kind, options = ROWS[6]
    rule = Mixed(Rule("soap", kind, options), ADAMW)
    run = trace(tmp_path / "run.h5", rule, state_every=1)
    how = {"rules": {"SOAP": kind.rule}, "methods": ("tracin",)}
    for memory in ("2GiB", "4kB"):
        found = compare(run, rules.clip_factors(run, None), memory=memory, **how)
    assert found.attributes["as_in_the_run"].startswith("tests.helpers.own_states.SOAP: the eigenb")


def test_own_effects_are_the_quadratic_form(tmp_path):
    kind, options = ROWS[6]
    run = trace(tmp_path / "run.h5", Rule("", kind, options), steps=4, state_every=1)
    replay = Replay(run.path, run.task, rules={"SOAP": kind.rule})
    own = np.zeros(rules.TRAIN)
    for logged, had in zip(run.logged[0], run.had, strict=True):
        ids = logged.step.batch_ids
        for z, g in zip(ids, logged.gradients, strict=True):
            for n, one in g.items():
                size = 0.1 * had[n].numbers["size"] * (1 - 0.05 * 0.1) * len(ids)
                own[z] += size * float(
                    (kind.turned(one, had[n].matrix) ** 2 / had[n].divisor).sum()
                )
    found = replay.self_influence(progress=False).scores["self"]
    assert np.abs(found - own).max() <= 1e-10 * np.abs(own).max()


@pytest.mark.parametrize("how", [{}, {"snapshot_every": 4}], ids=["dense", "sparse"])
def test_steps_taken_again_lead_to_the_state(tmp_path, how):
    """In float32: to the bit, or eigenbases would be others. The first step moves nothing."""
    kind, options = ROWS[6]
    given = {"steps": 5, "accumulate": True, "base": rules.in_dtype(rules.task(), torch.float32)}
    runs = {"file": {"state_every": 1}, "again": how}
    found = {}
    for name, more in runs.items():
        run = trace(tmp_path / f"{name}.h5", Rule("", kind, options), **given, **more)
        replay = Replay(run.path, run.task, rules={"SOAP": kind.rule})
        found[name] = replay.influence([0, 1], methods=("tracin",), progress=False)
    scores = {name: one.scores["tracin"] for name, one in found.items()}
    assert np.abs(scores["again"] - scores["file"]).max() <= 1e-6 * np.abs(scores["file"]).max()
