"""Names the layer that cannot be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tracer.errors import GradientError


def cannot_twice(
    module: nn.Module | None, forward: Callable[[], Tensor], where: str, error: RuntimeError
) -> None:
    """Raise the error of a second backward pass that failed.

    Args:
        module: The model; None if only the function can be named.
        forward: Its forward pass.
        where: For messages.
        error: What torch said.

    Raises:
        GradientError: Names the innermost layer that fails by itself.
    """
    name = None if module is None else _layer(module, forward)
    what = "the loss or the model's forward" if name is None else f"layer {name}"
    said = str(error).splitlines()[0][:160]
    raise GradientError(
        f"{where}: {what} cannot be differentiated twice ({said}), which unrolled needs.\n"
        "  1. Use a form of it that torch differentiates twice (plain operations instead of a "
        "fused kernel or a function marked once_differentiable);\n"
        "  2. or ask for the other methods, which take first derivatives only."
    ) from error


def _layer(module: nn.Module, forward: Callable[[], Tensor]) -> str | None:
    """Return the innermost module that fails on what it was given."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    names = {one: name for name, one in module.named_modules() if name}

    def record(one: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((one, given, named))

    handles = [one.register_forward_pre_hook(record, with_kwargs=True) for one in names]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    for one, given, named in sorted(calls, key=lambda call: len(list(call[0].modules()))):
        if not _works(one, given, named):
            return f"{names[one]!r} ({type(one).__name__})"
    return None


def _works(one: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    leaves = [_leaf(value) for value in given]
    known = [p for p in (*leaves, *one.parameters()) if isinstance(p, Tensor) and p.requires_grad]
    with torch.enable_grad():
        values = one(*leaves, **named)
        value = values[0] if isinstance(values, tuple) else values
        if not isinstance(value, Tensor) or not value.requires_grad or not known:
            return True
        try:
            some = torch.autograd.grad(
                value.square().sum(), known, create_graph=True, allow_unused=True
            )
            found = [g.square().sum() for g in some if g is not None and g.requires_grad]
            if found:
                torch.autograd.grad(torch.stack(found).sum(), known, allow_unused=True)
        except RuntimeError:
            return False
    return True


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value
