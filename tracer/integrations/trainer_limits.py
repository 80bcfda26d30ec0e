"""What of transformers' Trainer cannot be traced."""

from __future__ import annotations

from typing import Any

from tracer.errors import TracingError
from tracer.integrations.limits import ONE_DEVICE, Case, refuse


def check_trainer(trainer: Any, record: str, task: Any = None) -> None:
    """Raise TracingError if a Trainer does what cannot be traced, or not by what is recorded.

    Args:
        trainer: The Trainer.
        record: What is recorded.
        task: A task, or its name; the loss of a ready one says how it smooths labels.
    """
    _check_smoothing(_of(trainer.args, "label_smoothing_factor", 0.0), _of(task, "loss"))
    refuse("the Trainer", _cases(trainer, trainer.args))
    collator = getattr(trainer, "data_collator", None)
    if record == "ids" and _of(collator, "mlm"):
        raise TracingError(
            f"the collator {type(collator).__name__} draws masks at random, which IDs do not say.\n"
            '1. To log what it draws: trace(..., record="batches").\n'
            "2. To draw each example's mask from its ID: train on task.train with task.collate of "
            "replay.tasks.masked_lm."
        )


def _check_smoothing(factor: float, loss: Any) -> None:
    own = _of(loss, "label_smoothing")
    if own is not None and own != factor:
        raise TracingError(
            f"the Trainer has label_smoothing_factor={factor}, and the loss of the task has "
            f"label_smoothing={own}: the run would not replay.\n"
            f"1. Build the task with label_smoothing={factor}.\n"
            f"2. Or train with label_smoothing_factor={own}."
        )


def _cases(trainer: Any, args: Any) -> list[Case]:
    collator = type(getattr(trainer, "data_collator", None)).__name__
    accelerator = getattr(trainer, "accelerator", None)
    return [
        (
            _of(args, "deepspeed") or _of(trainer, "is_deepspeed_enabled"),
            "uses DeepSpeed",
            f"{ONE_DEVICE}, without deepspeed",
        ),
        (
            _of(args, "fsdp") or _of(trainer, "is_fsdp_enabled"),
            "uses FSDP",
            f"{ONE_DEVICE}, without fsdp",
        ),
        (
            _of(args, "world_size", 1) > 1,
            f"runs on {_of(args, 'world_size')} processes",
            ONE_DEVICE,
        ),
        (
            _of(args, "n_gpu", 0) > 1,
            f"spreads batches over {_of(args, 'n_gpu')} GPUs (DataParallel)",
            "Set CUDA_VISIBLE_DEVICES to one of them",
        ),
        (
            _of(accelerator, "scaler") is not None,
            "scales gradients with a GradScaler (fp16=True)",
            "Use bf16=True",
        ),
        (
            collator == "DataCollatorWithFlattening" or _of(args, "packing"),
            f"packs sequences ({collator})",
            "Turn packing off, or use a collator that pads",
        ),
        (
            _of(args, "auto_find_batch_size"),
            "begins anew when memory runs out (auto_find_batch_size=True)",
            "Set per_device_train_batch_size to what fits",
        ),
        (
            _of(trainer, "neftune_noise_alpha") is not None,
            "adds noise to embeddings by a hook that a replay has not (neftune_noise_alpha)",
            "Leave neftune_noise_alpha out, or put the noise into the model that the task builds",
        ),
    ]


def _of(thing: Any, name: str, default: Any = None) -> Any:
    return getattr(thing, name, default)
