"""The result of self-influence: a table over training examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from replay.results.influence import save_table
from tracer.errors import InputError
from tracer.records import ID


@dataclass(frozen=True)
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

    def top(self, k: int = 10, *, by: str = "self") -> tuple[list[ID], NDArray[np.float64]]:
        """Return the k examples with the largest score, largest first.

        Raises:
            InputError: There is no such score.
        """
        if by not in self.scores:
            raise InputError(f"self-influence has {', '.join(self.scores)}; found {by!r}.")
        order = np.argsort(-self.scores[by], kind="stable")[:k]
        return [self.train_ids[i] for i in order], self.scores[by][order]

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimension ``train``, beside its place and moved there when whole.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        columns = {**self.scores, "visits": self.visits}
        save_table(Path(path), self.train_ids, columns, self.attributes, overwrite=overwrite)
