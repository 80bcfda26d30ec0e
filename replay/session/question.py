"""What a replay is asked: every argument of a question, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from replay.arguments import flag, plain, positive
from replay.methods.method import Method
from replay.methods.names import DEFAULT
from replay.methods.table import METHODS
from replay.session.choices import Window, chosen_methods, known_ids, matching, window
from replay.session.periods import Periods
from replay.states.checkpoints import chosen_checkpoints
from replay.task import Task, example_ids
from tracer.errors import shown
from tracer.log.read.run_log import RunLog
from tracer.records import ID

_SOME = 64  # training examples at a checkpoint, for a look
_UNROLLED = 8  # λ of parameters and two of the optimizer's tensors, before and after; two more


class Exact(TypedDict, total=False):
    """What ``Replay.checkpoint_sweep`` takes by name; ``Replay.influence`` explains it."""

    train_ids: Sequence[ID] | None
    parameters: str | Sequence[str] | None
    ideal_tolerance: float | None
    allow_mismatch: bool


class Asked(Exact, total=False):
    """What ``Replay.influence``, which explains it, and ``Replay.estimate`` take by name."""

    methods: str | Sequence[str]
    checkpoints: int | str | Sequence[int]
    steps: Window | None
    by: str | int | None


@dataclass(frozen=True)
class Question:
    """What ``Replay.influence`` and ``Replay.estimate`` are asked, checked.

    Attributes:
        test_ids: m test examples, the rows.
        train_ids: N training examples, the columns.
        methods: In the order in which they were named.
        steps: The window.
        periods: Into which scores are divided; one if they are not.
        checkpoints: The states at which methods that do not walk sum up; empty without one.
        asked: What was said about them.
        names: The parameters over which products are taken; None is all.
        tolerance: How far a split may be off, of itself; None: whatever the ends of a step give.
        allow_mismatch: Go on where a step does not reproduce.
    """

    test_ids: list[ID]
    train_ids: list[ID]
    methods: tuple[Method, ...]
    steps: range
    periods: Periods
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
        methods: str | Sequence[str] = DEFAULT,
        checkpoints: int | str | Sequence[int] = 10,
        train_ids: Sequence[ID] | None = None,
        steps: Window | None = None,
        parameters: str | Sequence[str] | None = None,
        ideal_tolerance: float | None = 1e-3,
        by: str | int | None = None,
        allow_mismatch: bool = False,
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
        looked_at = window(steps, len(log))
        return cls(
            test_ids=rows,
            train_ids=columns,
            methods=chosen,
            steps=looked_at,
            periods=Periods.of(log, by, looked_at, points),
            checkpoints=points,
            asked=shown(plain(checkpoints)).strip("'") if sums else "",
            names=matching(parameters, list(log.parameter_layout)),
            tolerance=positive("ideal_tolerance", ideal_tolerance),
            allow_mismatch=flag("allow_mismatch", allow_mismatch),
        )

    @property
    def beginning(self) -> Question:
        """Its first step; without methods that walk, some examples at the first checkpoint."""
        walks = self.walking
        return replace(
            self,
            methods=walks or self.methods,
            train_ids=self.train_ids[: 1 if walks else _SOME],
            steps=self.steps[:1],
            checkpoints=[] if walks else self.checkpoints[:1],
            periods=Periods(),
        )

    @property
    def size(self) -> int:
        """How many times as much as the beginning it is, about."""
        return len(self.steps if self.walking else self.checkpoints) * (
            1 if self.walking else len(self.train_ids) // _SOME
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
        splits = unrolls or self.divides
        return {"allow_mismatch": self.allow_mismatch, "splits": splits, "unrolls": unrolls}

    @property
    def divides(self) -> bool:
        """Whether steps are divided, with their factors as they were in the run."""
        return any(method.divide is not None for method in self.methods)

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
            "claims": "; ".join(
                f"{m.name}: {m.about.claim}" for m in self.methods if m.about.claim
            ),
            "window": f"{self.steps.start}:{self.steps.stop}",
            **({"by": self.periods.by} if self.periods.by else {}),
            "checkpoints": " ".join(map(str, self.checkpoints)),
            "checkpoints_asked": self.asked,
            "values_before": self.ends[0],
            "values_after": self.ends[1],
            "parameters_chosen": "all" if self.names is None else " ".join(sorted(self.names)),
            "ideal_tolerance": "none" if self.tolerance is None else self.tolerance,
            "allow_mismatch": int(self.allow_mismatch),
        }
