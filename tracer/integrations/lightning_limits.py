"""What of Lightning's Trainer and modules cannot be traced."""

from __future__ import annotations

import inspect
from typing import Any

from torch.utils.data import DataLoader

from tracer.errors import TracingError
from tracer.integrations.limits import ONE_DEVICE, Case, refuse

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_PRECISIONS = ("Precision", "MixedPrecision", "DoublePrecision", "HalfPrecision")
_TUNERS = ("BatchSizeFinder", "LearningRateFinder")


def package_of(trainer: Any) -> str:
    """Return the package of a Trainer.

    Raises:
        TracingError: It is none of Lightning's.
    """
    for kind in type(trainer).__mro__:
        for package in PACKAGES:
            if kind.__module__.startswith(f"{package}.trainer"):
                return package
    raise TracingError(
        f"expected a Trainer of lightning or pytorch_lightning, found {type(trainer).__name__}.\n"
        "1. Call trace(trainer, ...) with what lightning.pytorch.Trainer(...) returned.\n"
        "2. If it is missing: pip install 'tracin-replay[lightning]'."
    )


def check_trainer(trainer: Any) -> None:
    """Raise TracingError if a Trainer does what cannot be traced."""
    refuse("the Trainer", _of_trainer(trainer))


def check_fit(trainer: Any, module: Any, items: Any) -> None:
    """Raise TracingError if a module, its optimizers or its loaders cannot be traced.

    Args:
        trainer: The Trainer.
        module: The LightningModule.
        items: What ``trace`` was given.
    """
    manual = not module.automatic_optimization
    ours = (
        manual and items is not None,
        "divides its loss by itself (manual optimization), and items= was given",
        "Leave items= out, and let each micro-batch's loss be a mean over its examples",
    )
    refuse("the training", [*_of_fit(trainer, module), ours])


def _of_trainer(trainer: Any) -> list[Case]:
    strategy, precision = type(trainer.strategy).__name__, trainer.precision_plugin
    tuner = next((n for c in trainer.callbacks if (n := type(c).__name__) in _TUNERS), "")
    return [
        (
            strategy != "SingleDeviceStrategy",
            f"uses the strategy {strategy}",
            f"{ONE_DEVICE}: Trainer(devices=1, strategy='auto')",
        ),
        (trainer.world_size > 1, f"runs on {trainer.world_size} processes", ONE_DEVICE),
        (
            getattr(precision, "scaler", None) is not None,
            "scales gradients with a GradScaler (precision='16-mixed')",
            "Use precision='bf16-mixed'",
        ),
        (
            type(precision).__name__ not in _PRECISIONS,
            f"changes the model's precision by {type(precision).__name__}",
            "Use precision='32-true', '64-true' or 'bf16-mixed'",
        ),
        (
            str(getattr(trainer.gradient_clip_algorithm, "value", "")) == "value",
            "clips each value of the gradients (gradient_clip_algorithm='value')",
            "Use gradient_clip_algorithm='norm'",
        ),
        (tuner, f"trains to find settings ({tuner})", f"Train without {tuner}, with what it found"),
    ]


def _of_fit(trainer: Any, module: Any) -> list[Case]:
    loaders, optimizers = trainer.train_dataloader, trainer.optimizers
    names = ", ".join(type(one).__name__ for one in optimizers) or "none"
    return [
        (
            not isinstance(loaders, DataLoader),
            f"takes batches of several loaders at once (a {type(loaders).__name__})",
            "Train with one DataLoader, of a ConcatDataset for example",
        ),
        (
            "dataloader_iter" in inspect.signature(module.training_step).parameters,
            "takes its batches itself (training_step(self, dataloader_iter))",
            "Define training_step(self, batch, batch_idx)",
        ),
        (
            not optimizers or names == "_MockOptimizer",
            "has no optimizer",
            "Return one from configure_optimizers",
        ),
    ]
