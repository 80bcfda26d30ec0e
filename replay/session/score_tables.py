"""Tables that fill up while a run is replayed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.results.influence import Influence
from replay.session.run_pass import TERMS, StepResult
from tracer.errors import PrecisionWarning
from tracer.records import ID

_SHARE = 1e-3  # of the scores without their signs: by what they may miss the data part


class Tables:
    """Scores, drops and completeness terms of m test examples over a window of steps."""

    def __init__(
        self,
        test_ids: list[ID],
        train_ids: list[ID],
        window: range,
        methods: tuple[str, ...],
        restricted: bool,
    ) -> None:
        self._window, self._first, steps = window, window.start, len(window)
        self.test_ids, self.train_ids = test_ids, train_ids
        self._column = {identity: k for k, identity in enumerate(train_ids)}
        m = len(test_ids)
        split = [name for name in methods if name != "tracincp"]
        terms = [term for term in TERMS if restricted or term != "elsewhere"]
        self._scores = {name: np.zeros((m, len(train_ids))) for name in methods}
        self._terms = {name: {term: np.zeros((steps, m)) for term in terms} for name in split}
        self._drops = {name: np.zeros((steps, m)) for name in split}
        self._earned = {name: np.zeros((2, m)) for name in split}  # in all, and without signs
        self._quadrature: dict[str, NDArray[Any]] = {}
        if "ideal" in split:
            self._quadrature = {
                "split_error": np.full((steps, m), np.nan),
                "theta_inside": np.zeros((steps, m), dtype=bool),
                "gradients": np.zeros((steps, m), dtype=np.int64),
            }

    def add_step(self, rows: slice, step: StepResult) -> None:
        """Add one step for the test examples in ``rows``."""
        t = step.index - self._first
        pairs = [(i, self._column[z]) for i, z in enumerate(step.ids) if z in self._column]
        occurrences = np.array([i for i, _ in pairs], dtype=np.int64)
        columns = np.array([k for _, k in pairs], dtype=np.int64)
        for name, earned in step.credits.items():
            # np.add.at: an ID that stands twice in a batch counts twice
            np.add.at(self._scores[name].T[:, rows], columns, earned.numpy()[occurrences])
            self._earned[name][:, rows] += earned.sum(0).numpy(), earned.abs().sum(0).numpy()
            for term, values in step.terms(name).items():
                self._terms[name][term][t, rows] = values.numpy()
            self._drops[name][t, rows] = step.predicted(name).numpy()
        if "ideal" in step.splits:
            ideal = step.splits["ideal"]
            for name, table in self._quadrature.items():
                table[t, rows] = getattr(ideal, name).numpy()

    def add_scores(
        self, method: str, rows: slice, columns: slice, scores: NDArray[np.float64]
    ) -> None:
        """Add to a block of a method's scores."""
        self._scores[method][rows, columns] += scores

    def influence(self, attributes: dict[str, str | int | float]) -> Influence:
        """Return the result.

        Warns:
            PrecisionWarning: Scores do not add up to the data part of the loss differences.
        """
        for name, (earned, whole) in self._earned.items():
            data = self._terms[name]["data"].sum(0)
            off = np.abs(earned - data)
            j = int(np.argmax(off - _SHARE * whole))
            if off[j] > _SHARE * whole[j]:
                warnings.warn(
                    f"{name} scores of test example {self.test_ids[j]!r} add up to "
                    f"{earned[j]:.4g}, the data part of its loss difference is "
                    f"{data[j]:.4g}. Some gradients are pure rounding error because they cancel "
                    "over the batch (for example a bias in front of a BatchNorm); Adam and "
                    "RMSprop magnify them. Compute gradients in float64: dtype=torch.float64 "
                    "(--dtype float64).",
                    PrecisionWarning,
                    stacklevel=3,
                )
        return Influence(
            test_ids=self.test_ids,
            train_ids=self.train_ids,
            scores=self._scores,
            drops=self._drops,
            terms=self._terms,
            quadrature=self._quadrature,
            attributes=attributes,
            steps=list(self._window),
        )
