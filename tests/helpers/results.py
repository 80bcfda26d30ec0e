"""A small result, made without a replay."""

from __future__ import annotations

import numpy as np

from replay import Influence
from replay.session.step_result import TERMS


def made(ids=int):
    """Return a result with random numbers."""
    random = np.random.default_rng(0)
    methods = ("tracin", "ideal")
    return Influence(
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
    )
