"""Several optimizers of one model, checked and joined to one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tracer.errors import TracingError, shown, warn
from tracer.joined import Joined, Key, members
from tracer.unwrapping import unwrapped
from tracer.wrapper.arguments import qualified
from tracer.wrapper.foreign import check_optimizer

_REST = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_FEW = 3  # parameters that a message names


def joined(optimizer: Any) -> Optimizer:
    """Return the optimizer that a wrapper was given, or one made of a list or mapping of several.

    Raises:
        TracingError: It is none, or these cannot be joined.
    """
    if not isinstance(optimizer, (list, tuple, Mapping)):
        check_optimizer(optimizer)
        return optimizer  # type: ignore[no-any-return]
    parts = dict(optimizer) if isinstance(optimizer, Mapping) else dict(enumerate(optimizer))
    if not parts:
        raise TracingError("expected optimizers to wrap, found none.")
    for key, part in parts.items():
        check_optimizer(part)
        if isinstance(optimizer, Mapping) and not _is_name(key):
            raise TracingError(
                "names of optimizers are words of letters, digits and underscores, found "
                f"{shown(key)}."
            )
        _require_own_step(key, part)
    _require_apart(parts)
    return Joined(parts)


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier()


def _require_own_step(key: Key, part: Optimizer) -> None:
    _, *given = inspect.signature(type(part).step).parameters.values()
    if given and given[0].default is given[0].empty and given[0].kind not in _REST:
        raise TracingError(
            f"optimizer {key!r}, a {qualified(type(part))}, evaluates a closure in its step, after "
            "which gradients of the others are of another place.\n"
            "1. Wrap it alone, around all parameters;\n"
            "2. or join others: torch.optim.Adam, for example."
        )


def _require_apart(parts: Mapping[Key, Optimizer]) -> None:
    """Raise TracingError if two optimizers move one parameter."""
    owner: dict[int, Key] = {}
    for key, part in parts.items():
        for k, group in enumerate(part.param_groups):
            for parameter in group["params"]:
                first = owner.setdefault(id(parameter), key)
                if first != key:
                    raise TracingError(
                        f"optimizers {first!r} and {key!r} have one parameter in common, of shape "
                        f"{tuple(parameter.shape)} in group {k} of the latter; each parameter is "
                        "moved by one of them."
                    )


def say_left_out(optimizer: Optimizer, model: nn.Module) -> None:
    """Warn of parameters that require a gradient and that none of several optimizers moves."""
    held = {id(p) for one in members(optimizer) for g in one.param_groups for p in g["params"]}
    named = unwrapped(model).named_parameters()
    names = [name for name, p in named if p.requires_grad and id(p) not in held]
    if names and isinstance(optimizer, Joined):
        some = ", ".join(map(repr, names[:_FEW])) + (", ..." if len(names) > _FEW else "")
        warn(
            f"{len(names)} parameters of the model require a gradient and are in no group of the "
            f"optimizers: {some}. They stay as they are.\n"
            "1. Add them to a group of one of the optimizers;\n"
            "2. or set requires_grad to False, if they are not to be trained."
        )
