"""What takes the steps of a wrapped optimizer: it logs them, or tells them to who does."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn

from tracer.errors import TracingError
from tracer.records import MicroBatch
from tracer.watch.state_capture import RunState
from tracer.wrapper.forecast import Forecast, forecast
from tracer.wrapper.log_file import LogFile
from tracer.wrapper.stepping import Call


class Logger(ABC):
    """Takes the steps of one optimizer, in the process that made it.

    Args:
        file: The log.
        model: The module that owns the parameters.

    Attributes:
        path: The log.
        state: What the run is after its last step.
    """

    state: RunState

    def __init__(self, file: LogFile, model: nn.Module) -> None:
        self.path, self.model, self._file = file.path, model, file
        self._closed, self._owner = False, os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this process made it, and is not a fork of that."""
        return os.getpid() == self._owner

    def require_open(self) -> None:
        """Raise TracingError after ``close``, and in a forked process."""
        if self._closed:
            raise TracingError(
                f"the log {self.path} is closed; keep training steps inside the with block."
            )
        if not self.is_here:
            raise TracingError(
                f"the log {self.path} belongs to process {self._owner}, which forked this one; "
                "only that one can step the traced optimizer."
            )

    def forecast(self, steps: int) -> Forecast:
        """Return what a run of so many steps takes."""
        return forecast(self.path, steps, self.model, self.state, self._file.snapshots)

    @property
    @abstractmethod
    def has_no_step(self) -> bool:
        """Whether the log is open and its run has taken no step, nor moved without one."""

    @abstractmethod
    def is_on_file(self) -> bool:
        """Have every step but the last one on file; return whether it is."""

    @abstractmethod
    def step(self, call: Call, announce: Callable[[], object]) -> tuple[Any, Any]:
        """Take one step.

        Args:
            call: What the optimizer's ``step`` is given.
            announce: Called when a closure has run for the first time.

        Returns:
            What the optimizer returned, and what is to be passed to ``keep``; None if the step
            was skipped or is not logged.
        """

    @abstractmethod
    def step_along(self, call: Call, clip_factor: float) -> Any:
        """Take the step of one more optimizer on the gradients of the last step, as a part of it.

        Args:
            call: What its ``step`` is given.
            clip_factor: What all optimizers' gradients were multiplied with before that one.

        Returns:
            What the optimizer returned.
        """

    @abstractmethod
    def keep(
        self,
        measured: Any,
        micro_batches: list[MicroBatch],
        *,
        epoch: int | None,
        clip_factor: float,
    ) -> None:
        """Keep a step that was taken until its parameters are final."""

    @abstractmethod
    def observed(self) -> None:
        """Say so if the model moved since another micro-batch of the step was announced."""

    @abstractmethod
    def settle_early(self) -> None:
        """Write the last step's result: something is about to change parameters."""

    @abstractmethod
    def flush(self, *, state: bool = False) -> None:
        """Return when every step so far is on file, the last one as parameters are now."""

    @abstractmethod
    def close(self) -> None:
        """End the log; a forked copy leaves it alone."""

    @abstractmethod
    def give_up(self) -> None:
        """Write no step."""
