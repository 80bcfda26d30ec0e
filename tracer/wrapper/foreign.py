"""Classes around optimizers that other libraries make, and what to wrap instead of them."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from tracer.errors import TracingError
from tracer.wrapper.delegation import Delegating

_LIGHTNING = (
    "Call tracer.integrations.lightning.trace(trainer, log), or return the wrapper from "
    "configure_optimizers: TracingOptimizer(optimizer, model, log)."
)
_FABRIC = (
    "Wrap the torch optimizer before fabric.setup, and hand the wrapper to that; call observe(ids) "
    "once for each batch."
)
_SCHEDULE_FREE = (
    "Use SGDScheduleFree, AdamWScheduleFree or RAdamScheduleFree: each is one torch optimizer, "
    "which can be wrapped."
)
_REMEDIES = {
    "accelerate.optimizer.AcceleratedOptimizer": "Call tracer.integrations.accelerate.trace, or "
    "wrap the torch optimizer before accelerator.prepare, and call observe(ids) for each batch.",
    "lightning.pytorch.core.optimizer.LightningOptimizer": _LIGHTNING,
    "pytorch_lightning.core.optimizer.LightningOptimizer": _LIGHTNING,
    "lightning.fabric.wrappers._FabricOptimizer": _FABRIC,
    "lightning_fabric.wrappers._FabricOptimizer": _FABRIC,
    "fastai.optimizer.Optimizer": "Wrap a torch optimizer, and hand the wrapper to fastai: "
    "OptimWrapper(opt=TracingOptimizer(optimizer, model, log)).",
    "fastai.optimizer.OptimWrapper": "Wrap the torch optimizer inside it: "
    "OptimWrapper(opt=TracingOptimizer(optimizer, model, log)).",
    "schedulefree.wrap_schedulefree.ScheduleFreeWrapper": _SCHEDULE_FREE,
    "schedulefree.wrap_schedulefree_reference.ScheduleFreeWrapperReference": _SCHEDULE_FREE,
    "torch.distributed.optim.zero_redundancy_optimizer.ZeroRedundancyOptimizer": "Wrap the torch "
    "optimizer itself: every rank then has all of its state.",
}


def check_optimizer(optimizer: Any) -> None:
    """Raise TracingError, which says what to wrap, if this is no torch optimizer to wrap."""
    if isinstance(optimizer, Delegating):
        raise TracingError("expected a torch optimizer to wrap, found one that is traced already.")
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(optimizer).__mro__]
    known = [name for name in names if name in _REMEDIES]
    if isinstance(optimizer, Optimizer) and not known:
        return
    held = {key: value for key, value in _attributes(optimizer) if isinstance(value, Optimizer)}
    remedies = [_REMEDIES[name] for name in known] or [
        f"Wrap what it holds as .{key}, a {type(value).__name__}, before it is made of that."
        for key, value in held.items()
    ]
    steps = "".join(f"\n{number}. {text}" for number, text in enumerate(remedies, 1))
    found = known[0] if known else names[0].removeprefix("builtins.")
    raise TracingError(f"expected a torch optimizer to wrap, found {found}.{steps}")


def _attributes(value: Any) -> list[tuple[str, Any]]:
    return list(getattr(value, "__dict__", {}).items())
