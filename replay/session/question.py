"""What a replay is asked: every argument of a question, checked once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from replay.methods.method import Method
from replay.methods.table import METHODS
from replay.states.checkpoints import chosen_checkpoints
from replay.task import Task, example_ids, unknown_ids
from tracer.errors import InputError
from tracer.log.read.run_log import RunLog
from tracer.records import ID

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
        names: The parameters over which products are taken; None is all.
        tolerance: Where a method stops refining a split; None never refines.
        allow_mismatch: Go on where a step does not reproduce.
    """

    test_ids: list[ID]
    train_ids: list[ID]
    methods: tuple[Method, ...]
    steps: range
    checkpoints: list[int]
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
        methods: Sequence[str],
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
        check_methods(methods)
        chosen = tuple(METHODS[name] for name in methods)
        sums = not all(method.walks for method in chosen)
        points = chosen_checkpoints(log, checkpoints) if sums else []
        columns = example_ids(task.train) if train_ids is None else train_ids
        rows = known_ids(test_ids, task.test, "test")
        columns = known_ids(columns, task.train, "training")
        check_tolerance(ideal_tolerance)
        return cls(
            test_ids=rows,
            train_ids=columns,
            methods=chosen,
            steps=window(steps, len(log)),
            checkpoints=points,
            names=matching(parameters, list(log.parameter_layout)),
            tolerance=ideal_tolerance,
            allow_mismatch=allow_mismatch,
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
    def divides(self) -> bool:
        """Whether steps are divided among examples, which not every update rule allows."""
        return any(method.divide is not None for method in self.methods)

    @property
    def refines(self) -> bool:
        """Whether gradients are taken between the ends of a step."""
        return any(method.refines for method in self.methods)

    @property
    def facts(self) -> dict[str, str | float]:
        """The choices, as attributes of the result."""
        return {
            "methods": " ".join(method.name for method in self.methods),
            "window": f"{self.steps.start}:{self.steps.stop}",
            "checkpoints": " ".join(map(str, self.checkpoints)),
            "parameters_chosen": "all" if self.names is None else " ".join(sorted(self.names)),
            "ideal_tolerance": "none" if self.tolerance is None else self.tolerance,
        }


def known_ids(ids: Any, dataset: Any, side: str) -> list[ID]:
    """Return IDs, of a list, tensor or array, as Python numbers or text.

    Raises:
        InputError: They are not some of a data set's, each once.
    """
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(listed, (str, bytes)) or not hasattr(listed, "__iter__"):
        raise InputError(f"expected a list of {side} IDs, found {ids!r}.")
    found: list[ID] = [one.item() if hasattr(one, "item") else one for one in listed]
    if len(found) == 0:
        raise InputError(f"expected at least one {side} ID, found none.")
    unknown = unknown_ids(dataset, found)
    if unknown:
        raise InputError(f"the {side} set has no example {unknown[0]!r}.")
    if len(set(found)) < len(found):
        twice = next(i for i in found if found.count(i) > 1)
        raise InputError(f"{side} ID {twice!r} is listed twice; list each example once.")
    return found


def check_methods(methods: Sequence[str]) -> None:
    """Raise InputError unless every method is known."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or isinstance(methods, str):
        raise InputError(f"methods are any of {', '.join(METHODS)}; found {methods!r}.")


def check_tolerance(tolerance: float | None) -> None:
    """Raise InputError unless ``ideal_tolerance`` can be one."""
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"ideal_tolerance must be positive or None, found {tolerance}.")


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
    start: int | None = None
    stop: int | None = None
    stride: int | None = 1
    if isinstance(steps, str):
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", steps)
        start, stop = (int(v) if v else None for v in match.groups()) if match else (-1, -1)
    elif isinstance(steps, tuple):
        start, stop = steps if len(steps) == 2 else (-1, -1)
    elif isinstance(steps, (range, slice)):
        start, stop, stride = steps.start, steps.stop, steps.step
    else:
        start = -1
    start, stop = 0 if start is None else start, total if stop is None else stop
    if not (stride in (None, 1) and 0 <= start < stop <= total):
        raise InputError(
            f"steps is a window a:b with 0 <= a < b <= {total} of this run, found {steps}."
        )
    return range(start, stop)


def matching(patterns: str | Iterable[str] | None, names: Sequence[str]) -> frozenset[str] | None:
    """Return the parameters that match any pattern (``"head.*"``); None if all are meant.

    Raises:
        InputError: A pattern matches none.
    """
    if patterns is None:
        return None
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"no parameter matches {pattern!r}; the model has {shown}.")
        found.update(hits)
    if not found:
        raise InputError("parameters is empty; give at least one pattern, or None for all.")
    return frozenset(found)
