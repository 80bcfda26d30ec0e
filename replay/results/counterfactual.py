"""The result of counterfactual runs: test values of each, beside those of the run itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from replay.arguments import place
from replay.results.file import Content, open_result, write_result
from replay.results.summary import summary
from replay.results.variables import (
    BASELINE,
    CHANGE_RUN,
    CHANGE_SCALE,
    COUNTERFACTUAL,
    VALUE_OF_RUN,
)
from tracer.records import ID

Table = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Counterfactual:
    """Test values of R counterfactual runs: what would have happened.

    Attributes:
        test_ids: m test examples.
        changes: For each run, the training examples whose weights it changed, and what they were
            multiplied by; 0 is an example that was removed.
        steps: The K states at which values were taken; the last one is ``T``.
        values_along: Values of each run there, float64 ``(R, K, m)``; NaN where one diverged.
        baseline_along: Values of the run itself, ``(K, m)``.
        attributes: Protocol, sign, unit, run, update rule, versions.
    """

    test_ids: list[ID]
    changes: list[dict[ID, float]]
    steps: list[int]
    values_along: Table
    baseline_along: Table
    attributes: dict[str, str | int | float]

    def __repr__(self) -> str:
        facts = self.attributes
        rows = {"protocol": self.protocol, "run": facts.get("log"), "sign": facts.get("sign")}
        count, m = len(self.changes), len(self.test_ids)
        return summary(f"Counterfactual: {count} runs, {m} test examples", rows)

    @property
    def values(self) -> Table:
        """Values at the end of each run, ``(R, m)``."""
        return self.values_along[:, -1]

    @property
    def baseline(self) -> Table:
        """Values at the end of the run itself, ``(m,)``."""
        found: Table = self.baseline_along[-1]
        return found

    @property
    def change(self) -> Table:
        """Values of each run less those of the run itself, ``(R, m)``.

        Where examples were removed, positive says that they were proponents.
        """
        return self.values - self.baseline

    @property
    def is_leave_one_out(self) -> bool:
        """Whether each run removed one example, each another one."""
        ids = [next(iter(change), None) for change in self.changes]
        alone = all(len(c) == 1 and set(c.values()) == {0.0} for c in self.changes)
        return alone and len(set(ids)) == len(ids)

    @property
    def protocol(self) -> str:
        """What was done, in words."""
        facts = self.attributes
        more = [f"{name} {facts[name]}" for name in ("fraction", "seed") if name in facts]
        kind, left = str(facts.get("protocol")), str(facts.get("denominators"))
        return ", ".join([f"{kind} of {len(self.changes)} runs", *more, f"denominators {left}"])

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimensions ``run``, ``step``, ``test`` and ``change``.

        It is written beside its place and moved there when whole.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        labels: dict[str, Sequence[ID]] = {
            "run": range(len(self.changes)),
            "step": self.steps,
            "test": self.test_ids,
            "change": [identity for change in self.changes for identity in change],
        }
        target = place("a result", path)
        write_result(
            *(target, COUNTERFACTUAL, labels, self._variables(), self.attributes),
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path) -> Counterfactual:
        """Read what ``save`` wrote.

        Raises:
            InputError: The file is missing or holds something else.
        """
        with open_result(path, COUNTERFACTUAL) as file:
            changes: list[dict[ID, float]] = [{} for _ in file.labels["run"]]
            runs, scales = file.read(CHANGE_RUN).tolist(), file.read(CHANGE_SCALE).tolist()
            for run, identity, scale in zip(runs, file.labels["change"], scales, strict=True):
                changes[run][identity] = scale
            return cls(
                test_ids=file.labels["test"],
                changes=changes,
                steps=[int(step) for step in file.labels["step"]],
                values_along=file.read(VALUE_OF_RUN),
                baseline_along=file.read(BASELINE),
                attributes=file.attributes,
            )

    def _variables(self) -> Content:
        runs = [n for n, change in enumerate(self.changes) for _ in change]
        scales = [scale for change in self.changes for scale in change.values()]
        yield VALUE_OF_RUN, "", "", self.values_along
        yield BASELINE, "", "", self.baseline_along
        yield CHANGE_RUN, "", "", np.array(runs, dtype=np.int64)
        yield CHANGE_SCALE, "", "", np.array(scales, dtype=np.float64)
