"""What a result of influence holds, and how it is looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.arguments import one_of, plain, whole
from replay.methods.names import reference
from replay.results.notebook import NAMED, ROWS, ranking_html
from replay.results.summary import said_of_checkpoints, said_of_tolerance, summary
from replay.showing import facts_html
from tracer.errors import InputError, shown
from tracer.records import ID

Table = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class InfluenceData:
    """What ``Influence`` holds; its attributes stand there."""

    test_ids: list[ID]
    train_ids: list[ID]
    scores: dict[str, Table]
    drops: dict[str, Table]
    terms: dict[str, dict[str, Table]]
    quadrature: dict[str, NDArray[Any]]
    attributes: dict[str, str | int | float]
    steps: list[int] = field(default_factory=list)
    values: dict[str, Table] = field(default_factory=dict)
    by_period: dict[str, Table] = field(default_factory=dict)
    period_of_step: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __repr__(self) -> str:
        return summary(*self._said())

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what this is, and whose scores are strongest."""
        method = reference(self.scores)
        drops = next((terms["measured"].sum(0) for terms in self.terms.values()), None)
        rows = [
            (
                test,
                None if drops is None else float(drops[j]),
                zip(*self.top(test, method=method, k=NAMED), strict=True),
                zip(*self.bottom(test, method=method, k=NAMED), strict=True),
            )
            for j, test in enumerate(self.test_ids[:ROWS])
        ]
        more = len(self.test_ids) - len(rows)
        return facts_html(*self._said()) + ranking_html(method, rows, more)

    def _said(self) -> tuple[str, dict[str, object]]:
        """Return in one line what this is, and what is known of it."""
        m, n, steps = len(self.test_ids), len(self.train_ids), len(self.steps)
        facts = self.attributes
        rows: dict[str, object] = {
            "methods": ", ".join(self.scores),
            "checkpoints": said_of_checkpoints(facts) if facts.get("checkpoints") else "",
            "periods": f"{len(self.periods)}, by {facts.get('by')}" if self.periods else "",
            "ideal_tolerance": said_of_tolerance(facts, self.beyond_tolerance),
            "claims": facts.get("claims"),
            "not refused": "steps that do not reproduce" if facts.get("allow_mismatch") else "",
            "as in the run": facts.get("as_in_the_run"),
            "run": facts.get("log"),
            "sign": facts.get("sign"),
            "gradients": str(facts.get("gradient_dtype", "")).removeprefix("torch."),
        }
        what = type(self).__name__
        return f"{what} of {n} training on {m} test examples over {steps} steps", rows

    @property
    def completeness(self) -> dict[str, dict[str, Table]]:
        """Return each method's terms summed over steps, float64 ``(m,)`` each."""
        return {
            method: {term: values.sum(0) for term, values in terms.items()}
            for method, terms in self.terms.items()
        }

    @property
    def beyond_tolerance(self) -> NDArray[np.bool_]:
        """Where the split of ``ideal`` may be off by more than was asked for, ``(T, m)``.

        ``quadrature["split_error"]`` has by how much. Without ``ideal`` it is empty.
        """
        errors = self.quadrature.get("split_error", np.zeros((0, 0)))
        asked = self.attributes.get("ideal_tolerance", "none")
        found: NDArray[np.bool_] = errors > (np.inf if isinstance(asked, str) else asked)
        return found

    def top(self, test_id: ID, *, method: str | None = None, k: int = 5) -> tuple[list[ID], Table]:
        """Return the k strongest proponents of a test example, strongest first.

        Args:
            test_id: The test example.
            method: The method; default: the first of the result.
            k: How many; all, if the result has fewer.

        Raises:
            InputError: The test example or the method is not in the result.
        """
        return self._ranked(test_id, method, k, -1.0)

    def bottom(
        self, test_id: ID, *, method: str | None = None, k: int = 5
    ) -> tuple[list[ID], Table]:
        """Return the k strongest opponents of a test example, strongest first, as ``top``."""
        return self._ranked(test_id, method, k, 1.0)

    @property
    def periods(self) -> list[int]:
        """The P periods, in order: epochs, or first steps; empty without ``by=``."""
        return list(dict.fromkeys(self.period_of_step.tolist()))

    def curve(
        self, test_id: ID, *, train_id: ID, method: str | None = None
    ) -> tuple[NDArray[np.int64], Table]:
        """Return what a training example earned, step by step or period by period.

        Args:
            test_id: The test example.
            train_id: The training example.
            method: The method; default: the first of the result.

        Returns:
            The last step of each of P periods, and what the example earned in it, ``(P,)``.
            ``scores.cumsum()`` is what it had earned by then.

        Raises:
            InputError: An example or the method is not in the result, or it has no periods.
        """
        name = self._method(method)
        row, column = self.row(test_id), self.column(train_id)
        if name not in self.by_period:
            raise InputError(
                "a curve needs scores by step or period, and this result has their sums alone; ask "
                'again: run.influence(..., by="step") (--by step).'
            )
        last = dict(zip(self.period_of_step.tolist(), self.steps, strict=True))
        steps = np.array([last[period] for period in self.periods], dtype=np.int64)
        return steps, self.by_period[name][row, column].copy()

    def row(self, test_id: ID) -> int:
        """Return the row of a test example.

        Raises:
            InputError: It is not in the result.
        """
        return _place(test_id, self.test_ids, "test")

    def column(self, train_id: ID) -> int:
        """Return the column of a training example, as ``row``."""
        return _place(train_id, self.train_ids, "training")

    def _ranked(
        self, test_id: ID, method: str | None, k: int, sign: float
    ) -> tuple[list[ID], Table]:
        count = whole("k", k)
        row = self.scores[self._method(method)][self.row(test_id)]
        order = np.argsort(sign * row, kind="stable")[:count]
        return [self.train_ids[i] for i in order], row[order]

    def _method(self, method: str | None) -> str:
        """Return a method of the result, by default the first."""
        return one_of("method", next(iter(self.scores)) if method is None else method, self.scores)


def _place(identity: ID, known: Sequence[ID], side: str) -> int:
    """Return where an example stands among those of a result."""
    found = plain(identity)
    if isinstance(found, bool) or not isinstance(found, (int, str)) or found not in known:
        raise InputError(
            f"the result has no {side} example {shown(identity)}; it has {len(known)}, beginning "
            f"{', '.join(map(shown, known[:3]))}."
        )
    return known.index(found)
