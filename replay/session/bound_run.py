"""A run log bound to its task: what every question to a replay starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from replay.evaluate.binding import Models
from replay.evaluate.chunks import Chunks
from replay.evaluate.isolation import usual_surroundings
from replay.evaluate.state import States
from replay.progress import Progress
from replay.session.memory import Memory
from replay.session.threads import Threads
from replay.states.environment import matched
from replay.steps.tape import Tape
from replay.task import Task
from replay.vectors.workspace import temporaries
from tracer.log.read.run_log import RunLog
from tracer.rules.rule import UpdateRule
from tracer.rules.table import rule_of

_MUCH = 10  # times the beginning of some work; below, timing it would take too large a part
_LARGE = 1e8  # parameters times examples, of which a pass is faster with several threads


@dataclass(frozen=True)
class Surroundings:
    """How a replay computes, whatever the program has set.

    Attributes:
        memory: For activations and gradients.
        device: Where.
        allow_tf32: Let a GPU round products to 10 bits.
        environment: Metadata of the run whose oneDNN setting is taken; None is this process's.
        threads: How many.
    """

    memory: Memory
    device: torch.device
    allow_tf32: bool
    environment: Mapping[str, Any] | None = None
    threads: Threads = field(default_factory=Threads)

    def __call__(self) -> AbstractContextManager[None]:
        """Compute scores like this; leave all as it was."""
        return self._surrounded(self.threads.scoring())

    def again(self) -> AbstractContextManager[None]:
        """Take steps again like this, whose bits are to be the run's; leave all as it was."""
        return self._surrounded(self.threads.again())

    @contextmanager
    def _surrounded(self, threads: AbstractContextManager[None]) -> Iterator[None]:
        same = nullcontext() if self.environment is None else matched(self.environment)
        usual = usual_surroundings(self.device, allow_tf32=self.allow_tf32)
        with same, threads, usual, temporaries(self.memory.cuts):
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
    def remembers(self) -> bool:
        """Whether a step's split depends on the steps before it."""
        return self.rule is not None and self.rule.remembers(self.log.ever_used)

    def choose_threads(self, trial: Callable[[], object], size: int, tests: int) -> None:
        """Choose the number of threads by timing the beginning of some work; errors are left to it.

        Steps that are taken again are proved by the bits that the run's number gave, so nothing is
        chosen there, nor for a GPU or for little work.

        Args:
            trial: Does the beginning.
            size: How many times as much there is to do.
            tests: How many examples there are beside a batch.
        """
        found = torch.get_num_threads()
        if size < _MUCH or not self.log.is_dense or self.computing.device.type != "cpu":
            return
        examples = tests + len(self.log.batch_ids(0))
        arithmetic = examples * sum(
            shape.numel() for shape, _ in self.log.parameter_layout.values()
        )
        self.computing.threads.choose(trial, found if arithmetic > _LARGE else 1)

    @property
    def budget(self) -> int:
        """Bytes for activations and gradients."""
        return self.computing.memory.given

    @property
    def for_tables(self) -> int:
        """Bytes for tables of a result in memory: what fills them needs the rest."""
        return self.budget // 4

    @property
    def log(self) -> RunLog:
        """The run."""
        return self.states.log

    def tape(self, steps: range, shown: Progress, **how: Any) -> Tape:
        """Return the training side of some steps; ``how`` is ``Tape``'s."""
        budget = self.budget // 4
        known = self.states, self.task, self.models, steps, self.rule
        return Tape(*known, budget=budget, report=shown.task, **how)
