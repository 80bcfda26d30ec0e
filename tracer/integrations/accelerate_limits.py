"""What of accelerate's Accelerator and loaders cannot be traced."""

from __future__ import annotations

from typing import Any

from tracer.errors import TracingError
from tracer.integrations.limits import ONE_DEVICE, Case, refuse


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
