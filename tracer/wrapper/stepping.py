"""One call of an optimizer's ``step``, with what it was given, looked at before anything moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks

from tracer.joined import Joined


@dataclass(frozen=True)
class Call:
    """What ``step`` was given for a wrapped optimizer.

    Attributes:
        optimizer: That one.
        arguments: By position.
        named: By name.
    """

    optimizer: Optimizer
    arguments: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def closure(self) -> Callable[..., Any] | None:
        """The function that the optimizer calls for the loss, if there is one."""
        given = self.named.get("closure", self.arguments[0] if self.arguments else None)
        return given if callable(given) else None

    def make(self) -> Any:
        """Make the call."""
        return self.optimizer.step(*self.arguments, **self.named)

    def watched(self, closure: Callable[..., Any]) -> Call:
        """Return the call with another closure in the place of its own."""
        if "closure" in self.named:
            return replace(self, named={**self.named, "closure": closure})
        return replace(self, arguments=(closure, *self.arguments[1:]))


class Looking(Protocol):
    """Who looks at a step."""

    def begins(self) -> None:
        """Look before anything moves, when the optimizer's own hooks, which may clip, have run."""
        ...

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        """Run the closure where the optimizer calls it for the first time, if it ever does."""
        ...

    def look_at(self, optimizer: Optimizer) -> None:
        """Look at the groups and gradients of one optimizer, right before it moves anything."""
        ...


def take_step(call: Call, looking: Looking) -> Any:
    """Take an optimizer's step, and have it looked at; return what it returned."""
    optimizer, closure = call.optimizer, call.closure
    if isinstance(optimizer, Joined):
        if closure is not None:
            call = call.watched(_first(closure, looking.evaluate))
        optimizer.stepping = lambda part: _hooked(Call(part), partial(looking.look_at, part))
        try:
            return _hooked(call, looking.begins)
        finally:
            optimizer.stepping = None

    def begins() -> None:
        looking.begins()
        looking.look_at(optimizer)

    def evaluate(closure: Callable[[], Any]) -> Any:
        found = looking.evaluate(closure)
        looking.look_at(optimizer)
        return found

    if closure is not None:
        call = call.watched(_first(closure, evaluate))
    return _hooked(call, begins)


def _hooked(call: Call, begins: Callable[[], None]) -> Any:
    """Take a step that calls ``begins`` when the optimizer's own hooks have run."""
    optimizer = call.optimizer
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None) or _global_optimizer_pre_hooks
    if not hooks or not getattr(type(optimizer).step, "hooked", False):
        begins()
        return call.make()
    last = optimizer.register_step_pre_hook(lambda *_: begins())
    try:
        return call.make()
    finally:
        last.remove()


def _first(
    closure: Callable[..., Any], evaluated: Callable[[Callable[[], Any]], Any]
) -> Callable[..., Any]:
    """Return a closure whose first call is made by ``evaluated``."""
    calls = 0

    @wraps(closure)
    def evaluate(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return closure(*arguments, **named)
        return evaluated(lambda: closure(*arguments, **named))

    return evaluate
