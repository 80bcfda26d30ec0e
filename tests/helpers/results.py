"""Small results, made without a replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replay import CheckpointSweep, Counterfactual, Influence, SelfInfluence
from replay.results.checkpoint_sweep import ERRORS, Choice
from replay.session.step_result import TERMS


def made(ids=int, periods=()):
    """Return a result with random numbers.

    Args:
        ids: Makes an ID of a number.
        periods: The period of each of four steps.
    """
    random = np.random.default_rng(0)
    methods = ("tracin", "ideal")
    found = Influence(
        test_ids=[ids(k) for k in (7, 3)],
        train_ids=[ids(k) for k in range(6)],
        scores={m: random.normal(size=(2, 6)) for m in (*methods, "tracincp")},
        drops={m: random.normal(size=(4, 2)) for m in methods},
        terms={m: {t: random.normal(size=(4, 2)) for t in TERMS} for m in methods},
        quadrature={
            "split_error": np.full((4, 2), np.nan),
            "theta_inside": random.random((4, 2)) > 0.5,
            "gradients": random.integers(1, 9, (4, 2)),
        },
        values={name: random.random(2) for name in ("before", "after")},
        attributes={"sign": "positive = proponent", "unit": "nats", "steps": 4},
        steps=[0, 1, 2, 3],
    )
    if not periods:
        return found
    size = (len(set(periods)), 2, 6)
    by_period = {m: np.moveaxis(random.normal(size=size), 0, -1) for m in found.scores}
    scores = {m: part.sum(-1) for m, part in by_period.items()}
    of_step = np.array(periods)
    return replace(found, scores=scores, by_period=by_period, period_of_step=of_step)


def adding_up(ids=int, periods=(0, 0, 2, 2)):
    """Return a result of two test and six training examples whose terms add up."""
    found = made(ids, periods=periods)
    for terms in found.terms.values():
        terms["measured"] = found.drops["ideal"]
        others = [values for name, values in terms.items() if name not in ("residual", "measured")]
        terms["residual"] = terms["measured"] - np.sum(others, axis=0)
    return found


def left_out(found):
    """Return counterfactual runs that lack one training example of a result each."""
    random, m = np.random.default_rng(1), len(found.test_ids)
    changes = [{identity: 0.0} for identity in found.train_ids]
    base = np.ones((1, m))
    values = base + random.normal(size=(len(changes), 1, m))
    facts = {"protocol": "leave-one-out", "denominators": "of the run"}
    facts |= {key: found.attributes[key] for key in ("run_uuid",) if key in found.attributes}
    return Counterfactual(found.test_ids, changes, [4], values, base, facts)


def swept(found):
    """Return errors of two placements of 1, 2 and 4 checkpoints against a result's methods."""
    random, steps = np.random.default_rng(3), {1: (4,), 2: (2, 4), 4: (1, 2, 3, 4)}
    choices = [Choice(name, n, steps[n]) for name in ("even", "late") for n in steps]
    size = (len(choices), len(found.test_ids))
    errors = {m: {e: random.random(size) for e in ERRORS} for m in ("tracin", "ideal")}
    return CheckpointSweep(found.test_ids, choices, errors, {})


def of_themselves(train_ids):
    """Return self-influence of some training examples."""
    ids, random = list(train_ids), np.random.default_rng(2)
    scores = {name: random.random(len(ids)) for name in ("self", "own_drop")}
    return SelfInfluence(ids, scores, np.full(len(ids), 2), {"unit": "nats"})
