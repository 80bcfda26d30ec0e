"""An optimizer that hands everything on to the optimizer that it wraps, as it was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, wraps
from types import FunctionType, MethodType
from typing import Any, NoReturn, TypeVar, cast

from torch.optim import Optimizer

from tracer.errors import TracingError

Method = TypeVar("Method", bound=Callable[..., Any])
_OWN = (
    "optimizer",
    "_tracing",
    "_names",
    "_first",
    "_key",
    "_parts",
)  # instance attributes of the wrapper


class Delegating(Optimizer):
    """Hands on everything that is read from it, written to it, or called with any arguments.

    Nothing of the wrapped optimizer's methods is restated here, since its class may have changed
    their arguments or defaults. ``Optimizer.__init__`` is deliberately not called: groups, state
    and hooks are the wrapped optimizer's, whose own step calls the hooks, once.

    Attributes:
        optimizer: The wrapped optimizer.
    """

    optimizer: Optimizer

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)
        found = getattr(self.optimizer, name)
        if callable(found):  # a method that torch's optimizers do not have: it may move parameters
            self._hand_out()
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_own(name):
            super().__setattr__(name, value)
        else:
            setattr(self.optimizer, name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_own(name):
            super().__delattr__(name)
        else:
            delattr(self.optimizer, name)

    def _hand_out(self) -> None:
        """Get ready for what a method of the wrapped optimizer may do."""

    def _is_own(self, name: str) -> bool:
        """Return whether an attribute is the wrapper's; methods are, once a scheduler patches."""
        return name in _OWN or hasattr(type(self), name) or "optimizer" not in self.__dict__

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TracingError(
            "a wrapper that traces can be neither copied nor pickled: its log belongs to one run.\n"
            "1. Copy or save its state_dict().\n"
            "2. Copy the optimizer that it wraps: optimizer.optimizer."
        )


class _HandedOn:
    """A method of ``Optimizer`` that is the wrapped optimizer's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: Delegating | None, owner: type) -> Any:
        return getattr(Optimizer if wrapper is None else wrapper.optimizer, self._name)


for _name, _value in vars(Optimizer).items():
    if not _name.startswith("__") and isinstance(_value, (FunctionType, staticmethod)):
        setattr(Delegating, _name, _HandedOn(_name))


def extending(method: Method) -> Method:
    """Make a method show the parameters of the wrapped optimizer's, which it passes on, as its own.

    Torch's GradScaler and others look whether a parameter is there before they pass it.
    """
    return cast(Method, _Extending(cast(FunctionType, method)))


class _Extending:
    def __init__(self, function: FunctionType) -> None:
        self._function = function

    def __get__(self, wrapper: Delegating | None, owner: type) -> Any:
        if wrapper is None:
            return self._function
        kind: Any = type(wrapper.optimizer)
        return MethodType(_showing(self._function, kind), wrapper)


@lru_cache(maxsize=64)
def _showing(function: FunctionType, kind: Any) -> Callable[..., Any]:
    """Return a method of the wrapper with the signature of a class's method of that name."""

    @wraps(function)
    def method(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    shown = inspect.signature(getattr(kind, function.__name__)).parameters.values()
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    rest = [p for p in shown if p.kind is p.VAR_KEYWORD]
    parameters = [*(p for p in shown if p not in rest), *own, *rest]
    method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return method
