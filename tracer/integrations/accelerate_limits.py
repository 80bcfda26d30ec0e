"""What of accelerate's Accelerator and loaders cannot be traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tracer.errors import TracingError
from tracer.integrations.limits import ONE_DEVICE, Case, refuse
from tracer.unwrapping import unwrapped


def check_accelerator(accelerator: Any) -> None:
    """Raise TracingError if an Accelerator is none, or does what cannot be traced."""
    if not hasattr(accelerator, "distributed_type"):
        raise TracingError(
            f"expected an accelerate.Accelerator, found {type(accelerator).__name__}.\n"
            "1. Call trace(accelerator, model, optimizer, loader, log).\n"
            "2. If it is missing: pip install 'tracin-replay[accelerate]'."
        )
    refuse("the Accelerator", _of_accelerator(accelerator))


def check_loader(loader: Any) -> None:
    """Raise TracingError if a loader does what cannot be traced."""
    refuse("the training loader", _of_loader(loader))


def check_optimizers(accelerator: Any, model: Any, optimizer: Any) -> None:
    """Raise TracingError if several optimizers move the model."""
    inner = unwrapped(model)
    own = {id(p) for p in inner.parameters()} if isinstance(inner, nn.Module) else set()
    moving = [o for o in accelerator._optimizers if own & {id(p) for p in _parameters(o)}]
    case = (
        isinstance(optimizer, (list, tuple, Mapping)) or len(moving) > 1,
        "moves one model by several optimizers",
        "Wrap them yourself and prepare that: TracingOptimizer([first, second], model, log), with "
        "observe(ids) before each backward.\n2. If an earlier one is left, call "
        "accelerator.free_memory() before prepare",
    )
    refuse("the loop", [case])


def _parameters(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _of_accelerator(accelerator: Any) -> list[Case]:
    way = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    return [
        (
            way != "NO",
            f"spreads training over devices ({way})",
            f"{ONE_DEVICE}, without {way}",
        ),
        (
            accelerator.num_processes > 1,
            f"runs on {accelerator.num_processes} processes",
            ONE_DEVICE,
        ),
        (
            accelerator.scaler is not None,
            "scales gradients with a GradScaler (mixed_precision='fp16')",
            "Use mixed_precision='bf16'",
        ),
        (
            accelerator.mixed_precision == "fp8",
            "computes in fp8",
            "Use mixed_precision='bf16'",
        ),
        (
            not accelerator.device_placement,
            "leaves batches where they are (device_placement=False), with their IDs in them",
            "Leave device_placement out",
        ),
    ]


def _of_loader(loader: Any) -> list[Case]:
    prepared, kind = hasattr(loader, "base_dataloader"), type(loader).__name__
    return [
        (
            kind == "DataLoaderDispatcher",
            "takes its batches from one process (dispatch_batches=True)",
            "Leave dispatch_batches out",
        ),
        (
            prepared and getattr(loader, "device", None) is None,
            "leaves batches where they are (put_on_device=False), with their IDs in them",
            "Prepare it with device_placement=True",
        ),
    ]
