"""A function of a model with other parameters and buffers than the model holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class Elsewhere(nn.Module):
    """A function of a model as a module, for ``functional_call``.

    Args:
        function: Gets the model, and what else it is called with.
        module: The model.
    """

    def __init__(self, function: Callable[..., Tensor], module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *given: Any) -> Tensor:
        """Return the function's value."""
        return self.function(self.module, *given)

    def at(self, tensors: Mapping[str, Tensor], *given: Any) -> Tensor:
        """Return its value with other parameters and buffers."""
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        found: Tensor = functional_call(self, named, given)
        return found
