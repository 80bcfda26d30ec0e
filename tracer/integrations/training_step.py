"""The ``training_step`` of a Lightning module, as a module whose forward it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tracer.wrapper.turns import Turns


class TrainingStep(nn.Module):
    """What a step's forward is: the ``training_step`` of a module, which its forward is not.

    Args:
        module: The module.

    Attributes:
        turns: Told of the steps inside it, in manual optimization.
    """

    turns: Turns | None = None

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module  # as torch.compile's, which is looked into
        compiled = getattr(module, "_compiler_ctx", None)
        if compiled:  # by Lightning, each method on its own
            self.get_compiler_config = compiled["dynamo_ctx"].get_compiler_config

    def forward(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Take what the Trainer calls for a batch."""
        if self.turns is None:
            return step(*arguments)
        self.turns.call_begins()
        try:
            return step(*arguments)
        finally:
            self.turns.call_ends()

    def optimizer_step(
        self, before: Callable[..., Any], optimizer: Any, closure: Any, *rest: Any, **named: Any
    ) -> Any:
        """Take what the Trainer calls for an optimizer's step."""
        if self.turns is not None:
            self.turns.step_begins(idle=getattr(closure, "__name__", "") == "do_nothing_closure")
        result = before(optimizer, closure, *rest, **named)
        if self.turns is not None:
            self.turns.step_ended()
        return result
