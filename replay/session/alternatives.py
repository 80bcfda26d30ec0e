"""Which counterfactual runs a replay is asked for: every argument, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from replay.arguments import flag, listed, plain, whole
from replay.counterfactual.change import Change, drawn
from replay.session.choices import known_ids
from replay.task import Task, example_ids
from tracer.errors import InputError, shown
from tracer.log.read.run_log import RunLog
from tracer.records import ID

Facts = Mapping[str, str | int | float]
LEAVE_ONE_OUT, SUBSETS = "leave-one-out", "subsets"


@dataclass(frozen=True)
class Alternatives:
    """The counterfactual runs that are asked for, checked.

    Attributes:
        test_ids: m test examples.
        changes: One for each run.
        marks: The states at which values are taken; the last one is ``T``.
        protocol: What a result says of how the changes were chosen.
        allow_mismatch: Go on where the run, taken again, comes out otherwise.
    """

    test_ids: list[ID]
    changes: list[Change]
    marks: list[int]
    protocol: Facts
    allow_mismatch: bool

    @classmethod
    def of(
        cls,
        log: RunLog,
        task: Task,
        test_ids: Any,
        scales: Sequence[Mapping[ID, float]],
        protocol: Facts,
        *,
        renormalise: Any,
        along: Any,
        allow_mismatch: Any,
    ) -> Alternatives:
        """Check what all protocols take; ``scales`` are checked."""
        left, total = flag("renormalise", renormalise), len(log)
        marks = [total]
        if along is not None:
            marks = [*range(whole("along", along), total, whole("along", along)), total]
        known = known_ids(test_ids, task.test, "test")
        facts: Facts = {
            **protocol,
            "denominators": "of the examples left" if left else "of the run",
        }
        changes = [Change(scale, left) for scale in scales]
        return cls(known, changes, marks, facts, flag("allow_mismatch", allow_mismatch))


def scales_of(task: Task, remove: Any, scale: Any) -> list[dict[ID, float]]:
    """Return what each run multiplies weights by, of the arguments ``remove`` and ``scale``.

    Raises:
        InputError: They are not lists of training IDs, or factors by ID; or both or none is given.
    """
    if (remove is None) == (scale is None):
        raise InputError(
            "expected either remove=[[3], [4, 5]], a list of IDs for each run, or "
            "scale={3: 0.5}, factors by ID."
        )
    if scale is not None:
        several = [scale] if isinstance(scale, Mapping) else listed(scale)
        if not several or not all(isinstance(one, Mapping) for one in several):
            raise InputError(
                f"scale must be factors by ID, {{3: 0.5}}, or a list of such, one for each run; "
                f"found {shown(scale)}."
            )
        return [_factors(task, one) for one in several]
    several = listed(remove) or None
    runs = None if several is None else [listed(one) for one in several]
    if runs is None or any(one is None for one in runs):
        raise InputError(
            f"remove must be a list of IDs for each run, [[3], [4, 5]], found {shown(remove)}."
        )
    ids = [known_ids(one, task.train, "training") if one else [] for one in runs]
    return [dict.fromkeys(one, 0.0) for one in ids]


def left_out_one_by_one(task: Task, train_ids: Any) -> list[dict[ID, float]]:
    """Return the runs that remove one training example each."""
    chosen = example_ids(task.train) if train_ids is None else train_ids
    return [{identity: 0.0} for identity in known_ids(chosen, task.train, "training")]


def random_subsets(
    task: Task, train_ids: Any, count: Any, fraction: Any, seed: Any
) -> tuple[list[dict[ID, float]], Facts]:
    """Return runs that each remove a random subset, and what a result says of them."""
    chosen = example_ids(task.train) if train_ids is None else train_ids
    ids, share = known_ids(chosen, task.train, "training"), plain(fraction)
    if not isinstance(share, Real) or isinstance(share, bool) or not 0 < float(share) < 1:
        raise InputError(f"fraction must be between 0 and 1, found {shown(fraction)}.")
    number, start = whole("count", count), whole("seed", seed, least=0)
    sets = drawn(ids, number, float(share), start)
    facts: Facts = {
        "protocol": SUBSETS,
        "fraction": float(share),
        "seed": start,
        "drawn_from": len(ids),
    }
    return [dict.fromkeys(one, 0.0) for one in sets], facts


def _factors(task: Task, scale: Mapping[Any, Any]) -> dict[ID, float]:
    """Return one run's factors, by ID."""
    ids = known_ids(scale, task.train, "training") if scale else []
    factors = [plain(value) for value in scale.values()]
    for identity, value in zip(ids, factors, strict=True):
        real = isinstance(value, Real) and not isinstance(value, bool)
        if not real or not math.isfinite(float(value)):
            raise InputError(
                f"scale must be a number for each example, found {shown(value)} for "
                f"{shown(identity)}."
            )
    return {identity: float(value) for identity, value in zip(ids, factors, strict=True)}
