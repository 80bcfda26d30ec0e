"""Independent copies of a task's model: ``model()`` is called for each of them.

A copy of an object is no independent one where a function that it holds (a hook, a lambda, a
compiled method) goes on using the original's tensors, and hooks of parameters are not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from replay.task import Task
from tracer.errors import TaskError
from tracer.unwrapping import unwrapped

_ADVICE = (
    "task.model() hands out what it handed out before, and a replay needs independent models; "
    "build it anew in the function: def model(): return Net()"
)


def models(task: Task, count: int) -> list[nn.Module]:
    """Return models of a task that share nothing, without what compiled or wrapped them.

    Raises:
        TaskError: ``task.model()`` does not build them anew and what it returns cannot be copied.
    """
    built = [_built(task) for _ in range(count)]
    if sum(map(len, map(_parts, built))) == len({part for one in built for part in _parts(one)}):
        return built
    return [_copied(built[0]) for _ in built]


def _built(task: Task) -> nn.Module:
    built = task.model()
    if not isinstance(built, nn.Module):
        raise TaskError(f"task.model() must return an nn.Module, found {type(built).__name__}.")
    return unwrapped(built)


def _parts(model: nn.Module) -> set[int]:
    """Return what a model is made of: its modules and tensors, and where tensors lie."""
    tensors = [*model.parameters(), *model.buffers()]
    lie = {t.untyped_storage().data_ptr() for t in tensors if not is_lazy(t)} - {0}
    return {*map(id, model.modules()), *map(id, tensors), *lie}


def _copied(built: nn.Module) -> nn.Module:
    try:
        found = copy.deepcopy(built)
    except Exception as error:  # whatever is held: locks, files, tensors that hooks made
        raise TaskError(
            f"{_ADVICE} (copying it failed: {type(error).__name__}: {error})."
        ) from error
    for name, parameter in built.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise TaskError(f"{_ADVICE} (parameter {name!r} has hooks, which are not copied).")
    own, seen = _parts(built), set[int]()
    for name, module in found.named_modules():
        for key, value in vars(module).items():
            if _reaches(value, own, seen):
                where = f"{name}.{key}" if name else key
                raise TaskError(f"{_ADVICE} (a function in {where!r} goes on using the original).")
    return found


def _reaches(value: Any, own: set[int], seen: set[int]) -> bool:
    """Return whether functions that a copy holds use the original's modules or tensors."""
    if id(value) in own:
        return True
    if id(value) in seen or isinstance(value, (nn.Module, Tensor)):
        return False  # a module of the copy is looked at by itself
    seen.add(id(value))
    return any(_reaches(one, own, seen) for one in _held(value))


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, set)):
        return value
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or () if _is_full(cell))
        return (*cells, value.__defaults__ or (), value.__dict__)
    return ()


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a name that is not bound yet
        return False
