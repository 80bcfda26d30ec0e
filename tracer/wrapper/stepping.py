"""One call of an optimizer's ``step``, with what it was given, looked at before anything moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks


@dataclass(frozen=True)
class Call:
    """What ``step`` was given for the wrapped optimizer.

    Attributes:
        arguments: By position.
        named: By name.
    """

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def closure(self) -> Callable[..., Any] | None:
        """The function that the optimizer calls for the loss, if there is one."""
        given = self.named.get("closure", self.arguments[0] if self.arguments else None)
        return given if callable(given) else None

    def on(self, optimizer: Optimizer) -> Any:
        """Make the call."""
        return optimizer.step(*self.arguments, **self.named)

    def watched(self, closure: Callable[..., Any]) -> Call:
        """Return the call with another closure in the place of its own."""
        if "closure" in self.named:
            return Call(self.arguments, {**self.named, "closure": closure})
        return Call((closure, *self.arguments[1:]), self.named)


def take_step(
    optimizer: Optimizer,
    call: Call,
    begins: Callable[[], None],
    evaluated: Callable[[Callable[[], Any]], Any],
) -> Any:
    """Take an optimizer's step, and have it looked at.

    Args:
        optimizer: The optimizer.
        call: What to call.
        begins: Called before anything moves, when the optimizer's own hooks, which may clip, have
            run.
        evaluated: Runs the closure when the optimizer calls it for the first time, if it ever does.

    Returns:
        What the step returned.
    """
    closure = call.closure
    if closure is not None:
        call = call.watched(_first(closure, evaluated))
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None) or _global_optimizer_pre_hooks
    if not hooks or not getattr(type(optimizer).step, "hooked", False):
        begins()
        return call.on(optimizer)
    last = optimizer.register_step_pre_hook(lambda *_: begins())
    try:
        return call.on(optimizer)
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
