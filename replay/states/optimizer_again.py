"""Makes a run's optimizer again: its own class, its groups and flags, its hyperparameters."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from replay.task import Task
from tracer.errors import UnsupportedRuleError
from tracer.joined import NAMES, Joined, members
from tracer.records import OPTIMIZER, ParameterGroup, Step


def optimizer_class(path: Path, name: str, task: Task) -> type[Optimizer]:
    """Return the class of a run's optimizer.

    Nothing is imported because a log names it: a class from outside torch is one that the task's
    own file, or the program, has imported.

    Args:
        path: The log, for messages.
        name: The class's module and name, as logged.
        task: Its file has the class of a script that trained (``__main__``) and holds the task.

    Raises:
        UnsupportedRuleError: There is no such class.
    """
    module, _, kind = name.rpartition(".")
    if module == "torch.optim":
        importlib.import_module(module)
    places: list[Any] = [vars(sys.modules[module])] if module in sys.modules else []
    if module == "__main__":
        places.append(getattr(next(iter(task.losses.values())), "__globals__", {}))
    for place in places:
        found = place.get(kind)
        if isinstance(found, type) and issubclass(found, Optimizer):
            return found
    raise UnsupportedRuleError(
        f"{path} was made by {name}, and no such optimizer class is imported, so the steps between "
        "its snapshots cannot be taken again. Remedies:\n"
        f"  1. {_where(module)};\n"
        "  2. trace the run with snapshot_every=1, which needs no optimizer."
    )


def _where(module: str) -> str:
    if module == "__main__":
        return "put the class into the task's file, which the script that trains imports"
    return f"import {module} in the task's file"


def made_again(
    path: Path,
    kinds: Sequence[type[Optimizer]],
    stored: Mapping[str, Any],
    parameters: Sequence[Tensor],
) -> Optimizer:
    """Return an optimizer with the groups that a run had, or several; their states are empty.

    Args:
        path: The log, for messages.
        kinds: The class of each.
        stored: Their ``state_dict``.
        parameters: By their numbers there.

    Raises:
        UnsupportedRuleError: A constructor wants something else.
    """
    groups = [
        {**group, "params": [parameters[k] for k in group["params"]]}
        for group in stored["param_groups"]
    ]
    if len(kinds) == 1 and not any(OPTIMIZER in group for group in groups):
        return _made_again(path, kinds[0], groups)
    own = [[group for group in groups if group[OPTIMIZER] == n] for n in range(len(kinds))]
    for group in groups:
        del group[OPTIMIZER]
    pairs = zip(kinds, own, strict=True)
    return Joined(dict(enumerate(_made_again(path, kind, some) for kind, some in pairs)))


def _made_again(path: Path, kind: type[Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    known = inspect.signature(kind.__init__).parameters
    arguments = {k: v for k, v in groups[0].items() if k in known and k != "params"}
    wanted = {k: v for k, v in arguments.items() if known[k].default is known[k].empty}
    try:
        try:
            return kind(groups, **arguments)
        except (
            Exception
        ):  # it may not begin with a rate of 0, as a warm-up does: groups have theirs
            return kind(groups, **wanted)
    except Exception as error:
        raise UnsupportedRuleError(
            f"{path} was made by {kind.__module__}.{kind.__qualname__}, which cannot be made again "
            f"from its parameter groups ({type(error).__name__}: {str(error)[:200]}). Trace the "
            "run with snapshot_every=1, which needs no optimizer."
        ) from error


def named_state(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return an optimizer's ``state_dict``; that of several with names, as a log has it."""
    state = optimizer.state_dict()
    if isinstance(optimizer, Joined):
        names = {id(p): name for name, p in parameters.items()}
        state[NAMES] = [names[id(p)] for g in optimizer.param_groups for p in g["params"]]
    return state


def take_step(optimizer: Optimizer, step: Step) -> None:
    """Take the step of those optimizers that took it in the run."""
    for number, one in enumerate(members(optimizer)):
        if number in step.groups_by_optimizer:
            one.step()


def set_groups(optimizer: Optimizer, step: Step, parameters: Mapping[str, Tensor]) -> None:
    """Give optimizers the groups of a step, also those that were added or changed there."""
    found = step.groups_by_optimizer
    for number, one in enumerate(members(optimizer)):
        if number in found:
            _set_groups(one, found[number], parameters)


def _set_groups(
    optimizer: Optimizer, groups: Sequence[ParameterGroup], parameters: Mapping[str, Tensor]
) -> None:
    del optimizer.param_groups[len(groups) :]
    for k, logged in enumerate(groups):
        own = [parameters[name] for name in logged.names]
        if k == len(optimizer.param_groups):
            optimizer.add_param_group({"params": own})
        group = optimizer.param_groups[k]
        group["params"] = own
        set_hyperparameters(group, logged)


def set_hyperparameters(group: dict[str, Any], logged: ParameterGroup) -> None:
    """Give a group the numbers that a step used, in the types that it has."""
    numbers = logged.hyperparameters
    for key in dict.fromkeys(name.partition(".")[0] for name in numbers):
        value = group.get(key)
        if key in numbers:
            group[key] = _like(value, numbers[key])
        elif isinstance(value, (tuple, list)):
            new = (_like(one, numbers.get(f"{key}.{k}", one)) for k, one in enumerate(value))
            group[key] = type(value)(new)


def _like(value: Any, number: Any) -> Any:
    """Return a logged number in the type of a value; one that is the same stays the object."""
    if isinstance(value, Tensor):
        return value.fill_(number) if value.item() != number else value
    if isinstance(number, float) and math.isnan(number):
        return None if not isinstance(value, float) or not math.isnan(value) else value
    if value == number:
        return value
    return bool(number) if isinstance(value, bool) else number


def takes_closure(kind: type[Optimizer]) -> bool:
    """Return whether the class's step cannot do without a closure."""
    known = list(inspect.signature(kind.step).parameters.values())
    return len(known) > 1 and known[1].default is inspect.Parameter.empty
