"""A run log bound to its task: what every question to a replay starts from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from replay.evaluate.binding import Models
from replay.evaluate.chunks import Chunks
from replay.evaluate.isolation import usual_surroundings
from replay.evaluate.state import States
from replay.progress import Progress
from replay.steps.tape import Tape
from replay.task import Task
from replay.vectors.workspace import temporaries
from tracer.errors import InputError, shown
from tracer.log.read.run_log import RunLog


@contextmanager
def computing(budget: int, device: torch.device, *, allow_tf32: bool) -> Iterator[None]:
    """Compute as a replay does, whatever the program has set; leave all as it was."""
    with usual_surroundings(device, allow_tf32=allow_tf32), temporaries(budget):
        yield


def gradient_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype of gradients; None is the run's own.

    Raises:
        InputError: It is none, by object or by name.
    """
    known = {"float64": torch.float64, "float32": torch.float32}
    named = isinstance(dtype, (str, torch.dtype))
    if dtype is None or (named and dtype == "model"):
        return None
    found = known.get(str(dtype).removeprefix("torch.")) if named else None
    if found is None:
        raise InputError(
            f'dtype must be None (the run\'s own), "float64" or "float32", found '
            f"{dtype if isinstance(dtype, torch.dtype) else shown(dtype)}."
        )
    return found


@dataclass(frozen=True)
class BoundRun:
    """A run, its task, and how it is computed.

    Attributes:
        states: The run's states.
        task: Its task.
        models: Private copies of the task's model.
        chunks: Cuts examples into chunks that fit into memory.
        budget: Bytes for activations and gradients.
        allow_tf32: Let a GPU round products to 10 bits.
    """

    states: States
    task: Task
    models: Models
    chunks: Chunks
    budget: int
    allow_tf32: bool

    @property
    def log(self) -> RunLog:
        """The run."""
        return self.states.log

    def computing(self) -> AbstractContextManager[None]:
        """Compute as a replay does; see the function."""
        return computing(self.budget, self.models.device, allow_tf32=self.allow_tf32)

    def tape(self, steps: range, shown: Progress, **how: Any) -> Tape:
        """Return the training side of some steps; ``how`` is ``Tape``'s."""
        budget = self.budget // 4
        known = self.states, self.task, self.models, steps
        return Tape(*known, budget=budget, report=shown.task, **how)
