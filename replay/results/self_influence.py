"""The result of self-influence: a table over training examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from replay.arguments import one_of, place, whole
from replay.results.file import Content, open_result, write_result
from replay.results.summary import summary
from replay.results.variables import SELF_INFLUENCE, SELF_SCORES, VISITS
from tracer.records import ID


@dataclass(frozen=True, repr=False)
class SelfInfluence:
    """Self-influence of N training examples.

    Attributes:
        train_ids: N examples.
        scores: ``"self"`` and ``"own_drop"``, float64 ``(N,)``, in units of the training loss.
        visits: How often the run visited each, ``(N,)``.
        attributes: Run, update rule, versions, choices.
    """

    train_ids: list[ID]
    scores: dict[str, NDArray[np.float64]]
    visits: NDArray[np.int64]
    attributes: dict[str, str | int | float]

    def __repr__(self) -> str:
        rows = {
            "scores": ", ".join(self.scores),
            "visits": int(self.visits.sum()),
            "steps": self.attributes.get("window"),
            "run": self.attributes.get("log"),
        }
        return summary(f"SelfInfluence of {len(self.train_ids)} training examples", rows)

    def top(self, k: int = 10, *, by: str = "self") -> tuple[list[ID], NDArray[np.float64]]:
        """Return the k examples (all, if there are fewer) with the largest score, largest first.

        Raises:
            InputError: There is no such score.
        """
        scores, count = self.scores[one_of("by", by, self.scores)], whole("k", k)
        order = np.argsort(-scores, kind="stable")[:count]
        return [self.train_ids[i] for i in order], scores[order]

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimension ``train``, beside its place and moved there when whole.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        labels = {"train": self.train_ids}
        write_result(
            *(place("a result", path), SELF_INFLUENCE, labels, self._variables(), self.attributes),
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path) -> SelfInfluence:
        """Read what ``save`` wrote, by this version or an earlier one.

        Raises:
            InputError: The file is missing or holds something else.
        """
        with open_result(path, SELF_INFLUENCE) as file:
            return cls(
                train_ids=file.labels["train"],
                scores={name: file.read(kind) for name, kind in SELF_SCORES.items()},
                visits=file.read(VISITS),
                attributes=file.attributes,
            )

    def _variables(self) -> Content:
        for name, scores in self.scores.items():
            yield SELF_SCORES[name], "", "", scores
        yield VISITS, "", "", self.visits
