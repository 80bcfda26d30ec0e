"""TracingOptimizer: a torch optimizer that logs every step it takes.

To every torch tool the wrapper is the optimizer: parameter groups, state and hooks are the
wrapped one's, and training is bitwise what it is without tracing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tracer.distributed.ranks import Ranks
from tracer.errors import TracingError, warn
from tracer.joined import Joined, Key, members
from tracer.loading import require_training
from tracer.unwrapping import unwrapped
from tracer.watch.group_look import check_parameters
from tracer.wrapper import moved
from tracer.wrapper.arguments import check_arguments
from tracer.wrapper.collected import close_when_collected
from tracer.wrapper.epochs import checked_data
from tracer.wrapper.first_steps import FirstSteps, check_losses, checked_task
from tracer.wrapper.forecast import Forecast
from tracer.wrapper.joining import joined, say_left_out
from tracer.wrapper.log_path import checked_path
from tracer.wrapper.logger import Logger
from tracer.wrapper.overlap import check_apart, opened
from tracer.wrapper.setup import Settings, begin
from tracer.wrapper.traced import Traced
from tracer.wrapper.turns import Turns


class TracingOptimizer(Traced):
    """Wraps any torch optimizer and logs each step to one HDF5 file.

    Args:
        optimizer: The optimizer; it does the steps. Several, a list or a mapping from names, are
            one in the wrapper's hands; ``wrapper[name]`` is one of them, whose step is a step of
            the run, too.
        model: The module whose parameters it moves; may be compiled or wrapped.
        log: Path of the log.
        task: The replay task, or its name ``"package.module:name"`` or ``"file.py:name"``, which
            is kept in the log.
        reduction: ``"mean"`` or ``"sum"``: how the training loss joins the examples' losses.
        snapshot_every: ``1`` logs the parameters of every step. A number of steps, or ``"epoch"``,
            logs a full state there and a digest of every step: a replay computes the parameters
            between, and proves them. ``"auto"``: every step while that stays small, else 100.
        record: ``"ids"``; ``"seeds"``, for random augmentation by ``data``, of which a replay
            draws the same; or ``"batches"``, the batches themselves (streamed data).
        data: For ``record="seeds"``: the ``with_ids(dataset, seed=...)`` of the loader.
        resume: Go on with the log, if there is one: model, optimizer and torch's random state are
            put back to its last full state, and what it holds behind that is dropped. A number
            of steps: to the state there, where a trainer's own checkpoint is.
        overwrite: Replace an existing log.
        steps: How many steps the run will have, if you know: the line printed at the start then
            says what the log will take.
        compression: ``"none"``, or ``"delta"``: each snapshot as its difference to the one
            before; default: ``"delta"`` from a million parameters on where the extra
            ``compress`` is installed.
        sync_every: Steps between forced writes to the disk itself, against power cuts; 0 (the
            default) leaves that to the operating system.
        state_every: Steps between full states, from which a killed run resumes; default: what
            takes under 1 % of the log, at least 100.
        check_steps: How many of the first steps are replayed at once, so that a run that will not
            replay is known before it ends; 0 is none. Default: 3 with a ``task``, if the model has
            at most 100 million parameters.

    Attributes:
        epoch: Set it in the loop to enable ``checkpoints="epochs"`` at replay.

    Raises:
        TracingError: An argument is invalid, or the log cannot be resumed; says which and why.
        OutputExistsError: The log exists.
        LogError: Somebody else is writing the log.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer],
        model: nn.Module,
        log: str | Path,
        *,
        task: Any = None,
        reduction: str = "mean",
        snapshot_every: int | str = "auto",
        record: str = "ids",
        data: Any = None,
        resume: bool | int = False,
        overwrite: bool = False,
        steps: int | None = None,
        compression: str | None = None,
        sync_every: int = 0,
        state_every: int | None = None,
        check_steps: int | None = None,
    ) -> None:
        require_training()
        ranks = Ranks(model)
        with ranks.together():
            inner = joined(optimizer)
            self._require(inner)
            check_arguments(model, reduction, record)
            path = checked_path(log, overwrite=overwrite, resume=bool(resume), rank=ranks.rank)
            names = {id(p): name for name, p in unwrapped(model).named_parameters()}
            for one in members(inner):
                check_parameters(one, names)
            check_apart(inner, names)
            check_losses(task, inner)
            drawn, known = checked_data(record, data), checked_task(task, check_steps)
            shared = known, reduction, snapshot_every, record, drawn
            settings = Settings(*shared, resume, steps, compression, sync_every, state_every)
            tracing = begin(path, inner, model, settings, ranks)
        first = FirstSteps(tracing.log, task, check_steps, inner)
        super().__init__(inner, names, tracing, first)
        self._parts = {k: Traced(one, names, tracing, first, k) for k, one in _parts(inner)}
        opened(tracing.forwards, inner, model, path)
        say_left_out(inner, model)
        close_when_collected(self, tracing.log.close)

    @property
    def _log(self) -> Logger:
        return self._tracing.log

    def __getitem__(self, key: Key) -> Traced:
        """Return one of several optimizers, by its name or number."""
        if key not in self._parts:
            known = ", ".join(map(repr, self._parts)) or "none: it wraps one optimizer"
            raise TracingError(f"the wrapper has no optimizer {key!r}; it has {known}.")
        return self._parts[key]

    def _require(self, optimizer: Optimizer) -> None:
        """Raise TracingError if this class does not wrap that optimizer."""

    @property
    def epoch(self) -> int | None:
        """The epoch of the steps to come."""
        return self._tracing.epochs.now()

    @epoch.setter
    def epoch(self, value: int | None) -> None:
        self._tracing.epochs.go_to(value)

    def __enter__(self) -> TracingOptimizer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._log.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r}, log={str(self._log.path)!r})"

    def forecast(self, steps: int) -> Forecast:
        """Return what a run of so many steps takes on the disk, with batches as large as so far.

        Args:
            steps: How many.

        Warns:
            TracingWarning: It will not fit.
        """
        return self._tracing.forecasts.forecast(steps)

    def turns(self) -> Turns:
        """Return whom to tell of steps that are taken inside one call of the model."""
        return Turns(self.observe, self._tracing.forwards, self._tracing.moment)

    def flush(self, *, state: bool = False) -> None:
        """Return when every step so far is on file, with ``state`` a full state of here, too."""
        self._log.flush(state=state)

    def close(self) -> None:
        """End the log, and warn if it has no step; further steps are errors."""
        without = self._log.has_no_step
        self._log.close()
        if without:
            warn(moved.nothing(self._log.path))

    @property
    def position(self) -> tuple[int, int | None]:
        """(steps taken, also after tracing ended, epoch); where a resumed run goes on."""
        return self._log.state.steps, self.epoch


def _parts(optimizer: Optimizer) -> list[tuple[Key, Optimizer]]:
    return list(optimizer.parts.items()) if isinstance(optimizer, Joined) else []
