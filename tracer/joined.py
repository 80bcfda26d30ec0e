"""Several optimizers that move parts of one model, in the shape of one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

import torch
from torch.optim import Optimizer

from tracer.errors import TracingError
from tracer.records import OPTIMIZER

Key: TypeAlias = int | str
NAMES = "names"  # of the parameters, in a full state of several optimizers
_SCALED = ("grad_scale", "found_inf")  # what a GradScaler leaves to an optimizer


class Joined(Optimizer):
    """Takes the steps of several optimizers as one; groups and state are theirs.

    Defaults are those that all have: a scheduler of momentum asks them what groups have.

    ``Optimizer.__init__`` is deliberately not called: it would make lists of groups of its own.

    Args:
        parts: The optimizers, by name or number.

    Attributes:
        parts: Likewise.
        stepping: Takes the step of one of them, where somebody looks at each; else None.
    """

    stepping: Callable[[Optimizer], object] | None = None

    def __init__(self, parts: Mapping[Key, Optimizer]) -> None:
        self.parts = dict(parts)
        first, *others = (part.defaults for part in self.parts.values())
        common = {k: v for k, v in first.items() if all(k in other for other in others)}
        self.__setstate__({"defaults": common})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all of them, in order."""
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """Their states together; keys that are text begin with the optimizer's number."""
        return {
            f"{number}/{key}" if isinstance(key, str) else key: entry
            for number, part in enumerate(self.parts.values())
            for key, entry in part.state.items()
        }

    @property
    def _step_supports_amp_scaling(self) -> bool:
        found = [getattr(p, "_step_supports_amp_scaling", False) for p in self.parts.values()]
        return all(found)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the closure, if there is one; then take each optimizer's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            with self._scaled(part):
                (self.stepping or _step)(part)
            part._opt_called = True  # type: ignore[attr-defined]  # else its schedulers warn
        return loss

    def zero_grad(self, *arguments: Any, **named: Any) -> None:
        """Have each reset its gradients."""
        for part in self.parts.values():
            part.zero_grad(*arguments, **named)

    def add_param_group(self, param_group: dict[str, Any]) -> NoReturn:
        """Raise TracingError: nobody knows which of them is meant."""
        first = next(iter(self.parts))
        raise TracingError(
            f"add_param_group was called for {len(self.parts)} optimizers together.\n"
            f"1. Call it for the one that moves the group: optimizer[{first!r}].add_param_group, "
            "for example."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the states together as torch has that of one; groups say whose they are."""
        return combined([part.state_dict() for part in self.parts.values()])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each its part of what ``state_dict`` returned."""
        for part, own in apart(self, state_dict):
            part.load_state_dict(own)

    @contextmanager
    def _scaled(self, part: Optimizer) -> Iterator[None]:
        """Hand on to one of them what a GradScaler has left here."""
        found = {name: vars(self)[name] for name in _SCALED if name in vars(self)}
        for name, value in found.items():
            setattr(part, name, value)
        yield
        for name in found:
            delattr(part, name)


def _step(optimizer: Optimizer) -> None:
    optimizer.step()


def members(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that are joined, or the only one."""
    return list(optimizer.parts.values()) if isinstance(optimizer, Joined) else [optimizer]


def combined(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the ``state_dict`` of several optimizers as one; text keys get a number before."""
    state: dict[Any, Any] = {}
    groups: list[dict[str, Any]] = []
    for number, own in enumerate(states):
        start = sum(len(group["params"]) for group in groups)
        for key, entry in own["state"].items():
            state[f"{number}/{key}" if isinstance(key, str) else start + key] = entry
        for group in own["param_groups"]:
            places = [start + k for k in group["params"]]
            groups.append({**group, "params": places, OPTIMIZER: number})
    return {"state": state, "param_groups": groups}


def apart(
    optimizer: Optimizer, stored: Mapping[str, Any]
) -> list[tuple[Optimizer, dict[str, Any]]]:
    """Return each optimizer with its own part of a ``state_dict``.

    Raises:
        ValueError: The optimizers have other groups.
    """
    if not isinstance(optimizer, Joined):
        return [(optimizer, dict(stored))]
    found = [(part, _own(stored, number)) for number, part in enumerate(members(optimizer))]
    for number, (part, own) in enumerate(found):
        there, given = (_sizes(groups) for groups in (part.param_groups, own["param_groups"]))
        if there != given:
            raise ValueError(
                f"optimizer {number} has groups of {there} parameters, and the state of {given}"
            )
    return found


def _sizes(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _own(stored: Mapping[str, Any], number: int) -> dict[str, Any]:
    groups = [group for group in stored["param_groups"] if group.get(OPTIMIZER) == number]
    places = [k for group in groups for k in group["params"]]
    new = {old: k for k, old in enumerate(places)}
    state: dict[Any, Any] = {new[k]: v for k, v in stored["state"].items() if k in new}
    start = f"{number}/"
    for key, value in stored["state"].items():
        if isinstance(key, str) and key.startswith(start):
            state[key.removeprefix(start)] = value
    own = [{k: v for k, v in group.items() if k != OPTIMIZER} for group in groups]
    for group in own:
        group["params"] = [new[k] for k in group["params"]]
    return {"state": state, "param_groups": own}
