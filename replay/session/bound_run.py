"""A run log bound to its task: what every question to a replay starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from replay.evaluate.binding import Models
from replay.evaluate.chunks import Chunks
from replay.evaluate.isolation import usual_surroundings
from replay.evaluate.state import States
from replay.progress import Progress
from replay.states.environment import matched
from replay.steps.tape import Tape
from replay.task import Task
from replay.vectors.workspace import temporaries
from tracer.log.read.run_log import RunLog
from tracer.rules.rule import UpdateRule
from tracer.rules.table import rule_of


@dataclass(frozen=True)
class Surroundings:
    """How a replay computes, whatever the program has set.

    Attributes:
        budget: Bytes for activations and gradients.
        device: Where.
        allow_tf32: Let a GPU round products to 10 bits.
        environment: Metadata of the run whose number of threads is taken; None is this process's.
    """

    budget: int
    device: torch.device
    allow_tf32: bool
    environment: Mapping[str, Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute like this; leave all as it was."""
        same = nullcontext() if self.environment is None else matched(self.environment)
        usual = usual_surroundings(self.device, allow_tf32=self.allow_tf32)
        with same, usual, temporaries(self.budget):
            yield


@dataclass(frozen=True)
class BoundRun:
    """A run, its task, and how it is computed.

    Attributes:
        states: The run's states.
        task: Its task.
        models: Private copies of the task's model.
        chunks: Cuts examples into chunks that fit into memory.
        computing: How; a context.
        source: The task as it was given: itself, its name, or None for the one that the log names.
        rules: The user's own update rules, by name.
    """

    states: States
    task: Task
    models: Models
    chunks: Chunks
    computing: Surroundings
    source: Task | str | None = None
    rules: Mapping[str, UpdateRule] = field(default_factory=dict)

    @property
    def rule(self) -> UpdateRule | None:
        """How the run's steps are split; None is not at all."""
        name = str(self.log.metadata["update_rule"])
        return rule_of(name, self.rules, self.log.ever_used)

    @property
    def budget(self) -> int:
        """Bytes for activations and gradients."""
        return self.computing.budget

    @property
    def log(self) -> RunLog:
        """The run."""
        return self.states.log

    def tape(self, steps: range, shown: Progress, **how: Any) -> Tape:
        """Return the training side of some steps; ``how`` is ``Tape``'s."""
        budget = self.budget // 4
        known = self.states, self.task, self.models, steps, self.rule
        return Tape(*known, budget=budget, report=shown.task, **how)
