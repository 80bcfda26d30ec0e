"""What a replay needs and a log cannot hold: model, loss, data; and loading it by name.

A task is named ``"package.module:name"`` or ``"file.py:name"``. Loading one runs its code,
so a reference that comes from a log is only followed inside the current directory or into an
installed module.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from tracer.errors import InputError, TaskError
from tracer.records import ID


@dataclass(frozen=True)
class Task:
    """Model, losses and data of a traced run.

    Attributes:
        model: ``() -> nn.Module``, built as for the run; its weights come from the log.
        loss: ``(model, batch) -> (b,)``, each example's own loss.
        train: Training examples by ID: a Dataset or any mapping.
        test: Test examples, likewise.
        measure: ``(model, batch) -> (m,)``, what is traced on the test side; default: ``loss``.
        penalty: ``(model) -> scalar`` added to the objective; counted as regulariser.
        collate: List of examples to a batch, as the run's DataLoader did.
        show: ``example -> text, array or image``: how a report shows an example.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], Tensor]
    train: Any
    test: Any
    measure: Callable[[nn.Module, Any], Tensor] | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None
    collate: Callable[[list[Any]], Any] = default_collate
    show: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("model", "loss", "collate"):
            given = getattr(self, name)
            if not callable(given):
                raise TaskError(
                    f"Task({name}=...) must be a function, found {type(given).__name__}."
                )
        if isinstance(self.model, nn.Module):
            raise TaskError(
                "Task(model=...) must be a function that builds the model, found a module; "
                "write model=lambda: model."
            )


def example_ids(dataset: Any) -> list[ID]:
    """Return every ID of a dataset: a mapping's keys, else ``range(len(dataset))``."""
    if hasattr(dataset, "keys"):
        return [_plain(key) for key in dataset.keys()]  # noqa: SIM118 - Mapping protocol only
    return list(range(len(dataset)))


def unknown_ids(dataset: Any, ids: Iterable[ID]) -> list[ID]:
    """Return those of ``ids`` that a dataset does not have, in order."""
    known: Any = dataset
    if not isinstance(dataset, Mapping):
        known = set(example_ids(dataset)) if hasattr(dataset, "keys") else range(len(dataset))
    return [identity for identity in ids if identity not in known]


def parse_test_ids(lines: Iterable[str], test: Any) -> list[ID]:
    """Read test IDs, one a line; ``#`` begins a comment, blank lines are skipped.

    Args:
        lines: The text.
        test: The task's test set; its keys decide which IDs exist and of which type.

    Raises:
        InputError: An ID is unknown or stands twice (with its line number), or there is none.
    """
    known: dict[str, ID] = {str(key): key for key in example_ids(test)}
    found: dict[ID, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip() if line.strip() in known else line.split("#", 1)[0].strip()
        if not text:
            continue
        if text not in known:
            some = ", ".join(list(known)[:3])
            raise InputError(
                f"line {number}: the test set has no example {text!r}; "
                f"its {len(known)} IDs begin {some}."
            )
        identity = known[text]
        if identity in found:
            raise InputError(
                f"line {number}: test ID {text!r} stands already on line {found[identity]}; "
                "list each test example once."
            )
        found[identity] = number
    if not found:
        raise InputError("expected one test ID a line, found none.")
    return list(found)


def resolved(
    task: Task | str | None,
    named: Any,
    log: Path,
    announce: Callable[[str], None] | None = None,
) -> Task:
    """Return a task: the one given, or the one that a log names.

    Args:
        task: A task or its name; None for the log's.
        named: What the log names.
        log: Its path, for the message.
        announce: Told the file before its code runs.

    Raises:
        TaskError: There is none, or it does not load.
    """
    if isinstance(task, Task):
        return task
    if task is None and not named:
        raise TaskError(f"{log} names no task; pass one: task= (--task module:name).")
    reference = str(named if task is None else task)
    return load_task(reference, trusted=task is not None, announce=announce)


def load_task(
    reference: str, *, trusted: bool, announce: Callable[[str], None] | None = None
) -> Task:
    """Import a task by name.

    Args:
        reference: ``"package.module:name"`` or ``"file.py:name"``.
        trusted: The user typed it; otherwise it comes from a log, and a file outside the
            current directory is refused.
        announce: Told the file before its code runs; its InputError passes through.

    Raises:
        TaskError: It does not import, is not a Task, or lies where it may not.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise TaskError(
            f'a task is named "package.module:name" or "file.py:name", found {reference!r}.'
        )
    here = Path.cwd()
    if place.endswith(".py"):
        path = (here / place).resolve()
        if not trusted and not path.is_relative_to(here.resolve()):
            raise TaskError(
                f"the log names the task {reference!r}, a file outside the current directory "
                f"{here}; if you trust it, pass --task {reference} (Python: task=)."
            )
        module = _load_file(path, reference, announce)
    else:
        module = _load_module(place, reference, announce)
    found = getattr(module, name, None)
    if found is None:
        raise TaskError(f"task {reference!r}: {place} has no {name!r}.")
    if not isinstance(found, Task):
        raise TaskError(
            f"task {reference!r}: expected a replay.Task, found {type(found).__name__}."
        )
    return found


def described(task: Task, dataset: Any, identity: ID) -> str | None:
    """Return ``task.show`` of an example, if it gives text."""
    shown = task.show(dataset[identity]) if task.show is not None else None
    return shown if isinstance(shown, str) else None


def _load_file(path: Path, reference: str, announce: Callable[[str], None] | None) -> ModuleType:
    if not path.is_file():
        raise TaskError(
            f"task {reference!r}: there is no file {path}; run from the directory that holds "
            "it, or name another task with --task (Python: task=)."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"task {reference!r}: {path} is not a Python file.")
    if announce is not None:
        announce(str(path))
    module = importlib.util.module_from_spec(spec)
    # the file's own imports look beside it, as they do when it is run as a script
    _first_on_path(path.parent)
    previous = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TaskError(
            f"task {reference!r}: running {path} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        if previous is not None:
            sys.modules[path.stem] = previous
    return module


def _load_module(place: str, reference: str, announce: Callable[[str], None] | None) -> ModuleType:
    _first_on_path(Path.cwd())
    try:
        spec = importlib.util.find_spec(place)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {place!r}")
        if announce is not None:
            announce(str(spec.origin))
        return importlib.import_module(place)
    except InputError:
        raise  # of announce: nothing was run
    except Exception as error:
        raise TaskError(
            f"task {reference!r} does not import: {type(error).__name__}: {error}; run from the "
            "directory it was written for, or name another task with --task (Python: task=)."
        ) from error


def _first_on_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _plain(key: Any) -> ID:
    """Return a key as the Python integer or string that it stands for."""
    if isinstance(key, str):
        return str(key)
    try:
        return int(key.__index__())
    except AttributeError:
        raise TaskError(
            f"IDs are integers or strings, found the key {key!r} of type {type(key).__name__}."
        ) from None
