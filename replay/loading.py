"""Loading a task by its name, ``"package.module:name"`` or ``"file.py:name"``.

That runs its code, so a file that a log names is only looked for in the current directory and
beside the log. One that lies where the run was made is only named in the error: whoever wrote the
log chose that folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from replay.task import Task
from tracer.errors import TaskError, TracinError
from tracer.loading import loading

T = TypeVar("T")


def resolved(
    task: Task | str | None,
    metadata: Mapping[str, Any],
    log: Path,
    announce: Callable[[str], None] | None = None,
) -> Task:
    """Return a task: the one given, or the one that a log names.

    Args:
        task: A task or its name; None for the log's.
        metadata: Of the log, which may name one, and the directory where the run was made.
        log: Its path.
        announce: Told the file before its code runs.

    Raises:
        TaskError: There is none, or it does not load.
    """
    if isinstance(task, Task):
        return task
    named = metadata.get("task")
    if task is None and not named:
        raise TaskError(f"{log} names no task; pass one: task= (--task module:name).")
    reference = str(named if task is None else task)
    return load_task(
        reference,
        trusted=task is not None,
        announce=announce,
        beside=log.absolute().parent,
        made=str(metadata.get("directory") or ""),
    )


def load_task(
    reference: str,
    *,
    trusted: bool,
    announce: Callable[[str], None] | None = None,
    beside: Path | None = None,
    made: str = "",
) -> Task:
    """Import a task by name, looked for in the current directory first.

    Args:
        reference: ``"package.module:name"`` or ``"file.py:name"``.
        trusted: The user typed it; otherwise it comes from a log, and a file outside the
            directories that are looked in is refused.
        announce: Told the file before its code runs; its InputError passes through.
        beside: A directory to look in next, the log's.
        made: A directory that a log names: what lies there is only named, in the error.

    Raises:
        TaskError: It does not import, is not a Task, or lies where it may not.
        TracingError: Its code begins to train.
    """
    place, _, name = reference.rpartition(":")
    folders = list(dict.fromkeys(one.resolve() for one in (Path.cwd(), beside) if one))
    if not place or not name:
        raise TaskError(
            f'a task is named "package.module:name" or "file.py:name", found {reference!r}.'
            + _meant(reference.rstrip(":"), "task", folders)
        )
    if place.endswith(".py"):
        there = _where_made(place, name, made)
        file = _found(place, reference, folders, there, trusted=trusted)
        module = _load_file(file, reference, announce)
    else:
        there = _where_made(place.replace(".", "/") + ".py", "", made)
        module = _load_module(place, reference, folders, there, announce)
    found = getattr(module, name, None)
    if found is None:
        meant = _meant(place, name, folders)
        raise TaskError(f"task {reference!r}: {place} has no {name!r}.{meant}")
    if not isinstance(found, Task):
        raise TaskError(
            f"task {reference!r}: expected a replay.Task, found {type(found).__name__}."
        )
    return found


def _found(place: str, reference: str, folders: list[Path], there: str, *, trusted: bool) -> Path:
    """Return the file that a reference names."""
    named = {folder: (folder / place).resolve() for folder in folders}
    where = " or ".join(map(str, folders))
    allowed = [path for folder, path in named.items() if trusted or path.is_relative_to(folder)]
    if not allowed:
        raise TaskError(
            f"the log names the task {reference!r}, a file outside the current directory and the "
            f"log's ({where}); if you trust it, pass --task {reference} (Python: task=)."
        )
    for path in allowed:
        if path.is_file():
            return path
    raise TaskError(
        f"task {reference!r}: there is no file {place} in {where}; run from the directory that "
        f"holds it, put it beside the log, or name another task with --task (Python: task=).{there}"
    )


def _where_made(file: str, name: str, made: str) -> str:
    """Return what an error says of a file in the directory where the run was made.

    Args:
        file: Its path in there.
        name: Of the task in it; without one, it is a module's.
        made: That directory as the log has it, whose code nobody has asked for.
    """
    path = Path(made) / file
    try:
        if not (made.isprintable() and Path(made).is_absolute() and path.is_file()):
            return ""
    except (OSError, ValueError):  # no file has such a name
        return ""
    do = f"pass --task {shlex.quote(f'{path}:{name}')}" if name else f"run from {shlex.quote(made)}"
    return f" The log says that the run was made in {made}, which has one: if you trust it, {do}."


def _load_file(path: Path, reference: str, announce: Callable[[str], None] | None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"task {reference!r}: {path} is not a Python file.")
    if announce is not None:
        announce(str(path))
    execute, module = spec.loader.exec_module, importlib.util.module_from_spec(spec)
    # the file's own imports look beside it, as they do when it is run as a script
    _first_on_path(path.parent)
    previous = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        _run(reference, str(path), lambda: execute(module))
    except BaseException:
        del sys.modules[path.stem]  # half of a module
        raise
    finally:
        if previous is not None:
            sys.modules[path.stem] = previous
    return module


def _load_module(
    place: str,
    reference: str,
    folders: list[Path],
    there: str,
    announce: Callable[[str], None] | None,
) -> ModuleType:
    _first_on_path(folders[0])
    sys.path += [str(one) for one in folders[1:] if str(one) not in sys.path]  # it shadows nothing
    try:
        origin = _run(reference, place, lambda: _origin(place))
    except TaskError as error:
        raise TaskError(f"{error}{there}") from error
    if announce is not None:
        announce(origin)
    return _run(reference, origin, lambda: importlib.import_module(place))


def _origin(place: str) -> str:
    spec = importlib.util.find_spec(place)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {place!r}")
    return str(spec.origin)


def _run(reference: str, file: str, job: Callable[[], T]) -> T:
    """Import something of the user's; it may not begin to train."""
    try:
        with loading(file):
            return job()
    except TracinError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"task {reference!r}: importing {file} failed: {type(error).__name__}: {error}. Run "
            "from the directory it was written for, or name another task with --task (Python: "
            "task=)."
        ) from error


def _meant(place: str, name: str, folders: list[Path]) -> str:
    """Return the file that was meant by what names none, as a message ends."""
    file = place.removesuffix(".py").replace(".", "/") + ".py"
    try:
        there = any((folder / file).is_file() for folder in folders)
    except OSError:  # no file has such a name
        return ""
    return f" Did you mean {file}:{name}?" if there and place != file else ""


_FIRST: list[str] = []  # on the path, for tasks


def _first_on_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
        _FIRST.append(str(directory))


@contextmanager
def tasks_last_on_path() -> Iterator[None]:
    """Start processes in here: what lies beside a task does not shadow what they begin with.

    A folder that came first on the path after this program had imported torch hides nothing from
    it. A process that is spawned takes the path and imports torch again: with a ``numbers.py``
    beside the task, not torch's.
    """
    before = sys.path[:]
    behind = [one for one in before if one in _FIRST]
    sys.path[:] = [one for one in before if one not in _FIRST] + behind
    try:
        yield
    finally:
        sys.path[:] = before
