"""What a replay is asked: every argument of a question, checked once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import index
from typing import Any

from replay.arguments import flag, listed, plain, positive
from replay.methods.method import Method
from replay.methods.table import METHODS
from replay.states.checkpoints import chosen_checkpoints
from replay.task import Task, beginning, example_ids, unknown_ids
from tracer.errors import InputError, shown
from tracer.identities import fault_of, plain_ids
from tracer.log.read.run_log import RunLog
from tracer.records import ID

_UNROLLED = 8  # λ of parameters and two of the optimizer's tensors, before and after; two more
Window = slice | range | tuple[int, int] | str


@dataclass(frozen=True)
class Question:
    """What ``Replay.influence`` and ``Replay.estimate`` are asked, checked.

    Attributes:
        test_ids: m test examples, the rows.
        train_ids: N training examples, the columns.
        methods: In the order in which they were named.
        steps: The window.
        checkpoints: The states at which methods that do not walk sum up; empty without one.
        asked: What was said about them.
        names: The parameters over which products are taken; None is all.
        tolerance: Where a method stops refining a split; None never refines.
        allow_mismatch: Go on where a step does not reproduce.
    """

    test_ids: list[ID]
    train_ids: list[ID]
    methods: tuple[Method, ...]
    steps: range
    checkpoints: list[int]
    asked: str
    names: frozenset[str] | None
    tolerance: float | None
    allow_mismatch: bool

    @classmethod
    def of(
        cls,
        log: RunLog,
        task: Task,
        test_ids: Sequence[ID],
        *,
        methods: str | Sequence[str],
        checkpoints: int | str | Sequence[int],
        train_ids: Sequence[ID] | None,
        steps: Window | None,
        parameters: str | Sequence[str] | None,
        ideal_tolerance: float | None,
        allow_mismatch: bool,
    ) -> Question:
        """Check the arguments of ``Replay.influence``.

        Raises:
            InputError: One of them cannot be used with this run and task.
        """
        chosen = chosen_methods(methods)
        sums = not all(method.walks for method in chosen)
        points = chosen_checkpoints(log, checkpoints) if sums else []
        columns = example_ids(task.train) if train_ids is None else train_ids
        rows = known_ids(test_ids, task.test, "test")
        columns = known_ids(columns, task.train, "training")
        return cls(
            test_ids=rows,
            train_ids=columns,
            methods=chosen,
            steps=window(steps, len(log)),
            checkpoints=points,
            asked=shown(plain(checkpoints)).strip("'") if sums else "",
            names=matching(parameters, list(log.parameter_layout)),
            tolerance=positive("ideal_tolerance", ideal_tolerance),
            allow_mismatch=flag("allow_mismatch", allow_mismatch),
        )

    @property
    def walking(self) -> tuple[Method, ...]:
        """The methods that go through every step, in the order of the table."""
        return tuple(m for m in METHODS.values() if m in self.methods and m.walks)

    @property
    def summing(self) -> tuple[Method, ...]:
        """The methods that sum over checkpoints."""
        return tuple(m for m in self.methods if not m.walks)

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last state that are looked at."""
        if self.walking:
            return self.steps.start, self.steps.stop
        return min(self.checkpoints), max(self.checkpoints)

    @property
    def tape(self) -> dict[str, bool]:
        """What the tape is to do: ``splits`` and ``unrolls`` are not possible for every rule."""
        unrolls = any(method.unroll is not None for method in self.methods)
        splits = unrolls or any(method.divide is not None for method in self.methods)
        return {"allow_mismatch": self.allow_mismatch, "splits": splits, "unrolls": unrolls}

    @property
    def vectors(self) -> int:
        """Vectors of the parameters' size that a test example needs on a walk backwards."""
        return sum(1 if method.unroll is None else _UNROLLED for method in self.walking)

    @property
    def refines(self) -> bool:
        """Whether gradients are taken between the ends of a step."""
        return any(method.refines for method in self.methods)

    @property
    def facts(self) -> dict[str, str | float]:
        """The choices, as attributes of the result."""
        return {
            "methods": " ".join(method.name for method in self.methods),
            "claims": "; ".join(f"{m.name}: {m.claim}" for m in self.methods if m.claim),
            "window": f"{self.steps.start}:{self.steps.stop}",
            "checkpoints": " ".join(map(str, self.checkpoints)),
            "checkpoints_asked": self.asked,
            "values_before": self.ends[0],
            "values_after": self.ends[1],
            "parameters_chosen": "all" if self.names is None else " ".join(sorted(self.names)),
            "ideal_tolerance": "none" if self.tolerance is None else self.tolerance,
        }


def known_ids(ids: Any, dataset: Any, side: str) -> list[ID]:
    """Return IDs, of a list, a tensor, a mapping's keys, as Python numbers or text.

    Raises:
        InputError: They are not some of a data set's, each once.
    """
    found = listed(list(ids) if isinstance(ids, Mapping) else ids)
    if found is None:
        raise InputError(f"expected a list of {side} IDs like [3, 14], found {shown(ids)}.")
    if not found:
        raise InputError(f"expected at least one {side} ID, found none; None means all.")
    found = plain_ids(found)
    for k, identity in enumerate(found):
        if type(identity) not in (int, str):
            raise InputError(
                f"{side} IDs are whole numbers or text, and number {k + 1} of the list is "
                f"{shown(identity)}; give the IDs, not the examples."
            )
    fault = fault_of(found)
    if fault:
        raise InputError(
            f"{side} IDs of one result must be all integers of 64 bits or all text without NUL; "
            f"{fault}. Ask for those of one kind (test_ids=, train_ids=), or give the data set "
            "other keys."
        )
    unknown = unknown_ids(dataset, found)
    if unknown:
        raise InputError(
            f"the {side} set has no example {shown(unknown[0])}; {beginning(example_ids(dataset))}."
        )
    if len(set(found)) < len(found):
        twice = next(i for i, count in Counter(found).items() if count > 1)
        raise InputError(f"{side} ID {shown(twice)} is listed twice; list each example once.")
    return found


def chosen_methods(methods: str | Iterable[str]) -> tuple[Method, ...]:
    """Return methods by their names, one name or several.

    Raises:
        InputError: There is none, or one is unknown or named twice.
    """
    names = [methods] if isinstance(methods, str) else listed(methods)
    if not names or not all(isinstance(name, str) and name in METHODS for name in names):
        raise InputError(f"methods are any of {', '.join(METHODS)}; found {shown(methods)}.")
    if len(set(names)) < len(names):
        raise InputError(f"methods names one twice: {', '.join(names)}; name each once.")
    return tuple(METHODS[name] for name in names)


def window(steps: Window | None, total: int) -> range:
    """Return the steps of a window.

    Args:
        steps: ``range(a, b)``, ``slice(a, b)``, ``(a, b)`` or ``"a:b"``; None is all.
        total: How many the run has.

    Raises:
        InputError: It is none of this run's.
    """
    if steps is None:
        return range(total)
    bounds = _bounds(steps)
    try:
        start, stop, stride = (None if v is None else index(v) for v in bounds or ())
    except (TypeError, ValueError):  # no numbers, or not three
        stride = 0
    if stride in (None, 1):
        start, stop = 0 if start is None else start, total if stop is None else stop
        if 0 <= start < stop <= total:
            return range(start, stop)
    raise InputError(
        f"steps is a window a:b with 0 <= a < b <= {total} of this run, found {shown(steps)}; "
        'write "0:5", slice(0, 5) or (0, 5).'
    )


def _bounds(steps: Any) -> tuple[Any, Any, Any] | None:
    """Return first step, end and stride of what can be a window."""
    if isinstance(steps, str):
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", steps, re.ASCII)
        first, end = match.groups() if match else ("0", "0")
        return int(first) if first else None, int(end) if end else None, 1
    if isinstance(steps, (range, slice)):
        return steps.start, steps.stop, steps.step
    return (*steps, 1) if isinstance(steps, tuple) and len(steps) == 2 else None


def matching(patterns: str | Iterable[str] | None, names: Sequence[str]) -> frozenset[str] | None:
    """Return the parameters that match any pattern (``"head.*"``); None if all are meant.

    Raises:
        InputError: A pattern matches none.
    """
    if patterns is None:
        return None
    given = [patterns] if isinstance(patterns, str) else listed(patterns)
    if not given or not all(isinstance(pattern, str) for pattern in given):
        raise InputError(
            f'parameters are patterns of names like "head.*", at least one, or None for all; '
            f"found {shown(patterns)}."
        )
    found: set[str] = set()
    for pattern in given:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"no parameter matches {shown(pattern)}; the model has {some}.")
        found.update(hits)
    return frozenset(found)
