"""Replays the first steps of a run while it goes on: what cannot replay is said at once.

The one place where ``tracer`` uses ``replay``, which is imported when there is something to check.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from tracer.errors import MismatchError, TracingError, shown, warn
from tracer.joined import Joined, Key
from tracer.watch.captures import ALL
from tracer.wrapper.arguments import check_numbers
from tracer.wrapper.forecast_lines import say
from tracer.wrapper.generators import left_as_found
from tracer.wrapper.logger import Logger

USUAL = 3  # steps that are checked if a task is given
LARGE = 100_000_000  # parameters from which on that has to be asked for


def checked_task(task: Any, check_steps: int | None) -> str:
    """Return a task's name for the log, empty if nobody knows it.

    Args:
        task: Its name, the task itself, or None.
        check_steps: How many steps are to be checked.

    Raises:
        TracingError: It is neither, or there is none and steps are to be checked.
    """
    check_numbers(check_steps=check_steps or None)
    if check_steps and task is None:
        raise TracingError("check_steps= needs a task to replay them with; pass task=, too.")
    if task is None or (isinstance(task, str) and ":" in task):
        return task or ""
    if not isinstance(task, str):
        from replay.task import Task

        if isinstance(task, Task):
            return _name_of(task)
    found = repr(task) if isinstance(task, str) else type(task).__name__
    raise TracingError(
        f'task must be "package.module:name", "file.py:name" or a replay.Task, found {found}.'
    )


def check_losses(task: Any, optimizer: Optimizer) -> None:
    """Raise TracingError if a task has losses by name, and none for an optimizer's steps."""
    losses = getattr(task, "loss", None)
    if not isinstance(losses, Mapping):
        return
    names = [str(key) for key in _names_of(optimizer)] or ["(without a name)"]
    missing = ", ".join(shown(name) for name in names if name not in set(map(str, losses)))
    if not missing:
        return
    raise TracingError(
        f"Task(loss=...) has losses for {', '.join(map(shown, losses))}, and none for the "
        f"optimizer {missing}, whose steps could not be replayed.\n"
        "  1. Name the optimizers as the losses: TracingOptimizer({...}, model, log=...);\n"
        "  2. or, if one loss moves all of them, give the task that loss: Task(loss=...)."
    )


class FirstSteps:
    """Checks the first steps that are logged, once, as soon as they are final.

    Args:
        log: The run.
        task: The task, or its name.
        count: How many steps; None is the usual number if there is a task.
        optimizer: What takes them.
    """

    def __init__(self, log: Logger, task: Any, count: int | None, optimizer: Optimizer) -> None:
        small = sum(p.numel() for p in log.model.parameters()) <= LARGE
        self._log, self._task, self._start = log, task, log.state.steps
        self._count = USUAL * (task is not None and small) if count is None else count
        self._names = _names_of(optimizer)  # left to be said of steps that these take together

    def step_taken(self, key: Key = ALL) -> None:
        """Check the steps if they are final: the next one was taken.

        Args:
            key: By which of several optimizers; ``ALL``: by all of them.
        """
        if key == ALL:
            self.taken_together()
        if not self._count or self._log.state.steps <= self._start + self._count:
            return
        steps = range(self._start, self._start + self._count)
        self._count = 0
        if not self._log.is_on_file():
            return
        task = self._task if not isinstance(self._task, str) else _imported(self._task)
        if task is not None:
            self._check(task, steps)

    def taken_together(self) -> None:
        """Warn once that several optimizers took a step, if the task has a loss for each."""
        names, self._names = self._names, []
        if len(names) < 2:
            return
        task = self._task if not isinstance(self._task, str) else _found(self._task)
        if not isinstance(getattr(task, "loss", None), Mapping):
            return
        self._count = 0  # it is said here
        warn(
            f"step {self._log.state.steps - 1} of {self._log.path} was taken by several optimizers "
            f"together (of {', '.join(map(shown, names))}), and the task has a loss for each: such "
            "a step cannot be replayed.\n"
            f"  1. Have each take its own: optimizer[{names[0]!r}].step(batch_ids=ids) after the "
            "backward pass of its loss;\n"
            "  2. or, if one loss moves all of them, give the task that loss: Task(loss=...)."
        )

    def _check(self, task: Any, steps: range) -> None:
        which = f"steps {steps.start}:{steps.stop} of {self._log.path}"
        try:
            with left_as_found(task), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                say(str(_verified(self._log, task, steps)))
        except MismatchError as error:
            warn(f"this run will not replay, as its first steps show. {error}")
        except Exception as error:
            warn(
                f"{which} cannot be replayed, nor will the later ones: {type(error).__name__}: "
                f"{error}"
            )


def _verified(log: Logger, task: Any, steps: range) -> Any:
    from replay.session.replay import Replay

    device = next((p.device for p in log.model.parameters()), "cpu")
    run = Replay(log.path, task, device=device)
    with run.log:
        return run.verify(steps=slice(steps.start, steps.stop), progress=False)


def _names_of(optimizer: Optimizer) -> list[Key]:
    """Return the names or numbers of several optimizers."""
    return list(optimizer.parts) if isinstance(optimizer, Joined) else []


def _imported(reference: str) -> Any:
    """Return the task of a name if its module is imported; else say so."""
    task = _found(reference)
    if task is None:
        say(
            f"the first steps are not checked: the task {reference} is not imported here; pass "
            "the task itself, task=task"
        )
    return task


def _found(reference: str) -> Any:
    """Return the task of a name if its module is imported; nothing is imported for it."""
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        found = sys.modules.get(place) or _run_by_name(place)
    else:
        files = {_file(module): module for module in list(sys.modules.values())}
        found = files.get(Path(place).resolve())
    return getattr(found, name, None)


def _run_by_name(place: str) -> Any:
    """Return the program itself if it runs as ``python -m place``."""
    main = sys.modules.get("__main__")
    return main if getattr(getattr(main, "__spec__", None), "name", None) == place else None


def _name_of(task: Any) -> str:
    """Return the name by which a replay finds a task, if a module that is imported has it."""
    for name, module in list(sys.modules.items()):
        for key, value in list(getattr(module, "__dict__", {}).items()):
            if value is task:
                file = _file(module)
                if name != "__main__":
                    return f"{name}:{key}"
                if file is not None and file.is_relative_to(Path.cwd()):
                    return f"{file.relative_to(Path.cwd())}:{key}"
    return ""


def _file(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None
