"""What of a Trainer cannot be traced, said by name before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tracer.errors import OutputExistsError, TracingError
from tracer.log.read.run_log import open_log


def check_trainer(trainer: Any) -> None:
    """Raise TracingError if a Trainer does what cannot be traced."""
    for found, what, remedy in _cases(trainer, trainer.args):
        if found:
            raise TracingError(f"the Trainer {what}, which cannot be traced.\n1. {remedy}")


def _cases(trainer: Any, args: Any) -> list[tuple[Any, str, str]]:
    """Return what was found, what it is and what to do, of each kind."""
    collator = type(getattr(trainer, "data_collator", None)).__name__
    accelerator = getattr(trainer, "accelerator", None)
    one = "Train in one process, on one device"
    return [
        (
            _of(trainer, "is_deepspeed_enabled"),
            "uses DeepSpeed",
            f"{one}, without deepspeed.",
        ),
        (
            _of(trainer, "is_fsdp_enabled") or _of(trainer, "is_fsdp_xla_enabled"),
            "uses FSDP",
            f"{one}, without fsdp.",
        ),
        (_of(args, "world_size", 1) > 1, f"runs on {_of(args, 'world_size')} processes", f"{one}."),
        (
            _of(args, "n_gpu", 0) > 1,
            f"spreads batches over {_of(args, 'n_gpu')} GPUs (DataParallel)",
            "Set CUDA_VISIBLE_DEVICES to one of them.",
        ),
        (
            _of(accelerator, "scaler") is not None,
            "scales gradients with a GradScaler (fp16=True)",
            "Use bf16=True.",
        ),
        (
            collator == "DataCollatorWithFlattening" or _of(args, "packing"),
            f"packs sequences ({collator})",
            "Turn packing off, or use a collator that pads.",
        ),
        (
            _of(args, "auto_find_batch_size"),
            "begins anew when memory runs out (auto_find_batch_size=True)",
            "Set per_device_train_batch_size to what fits.",
        ),
        (
            _of(trainer, "neftune_noise_alpha") is not None,
            "adds noise to embeddings by a hook that a replay has not (neftune_noise_alpha)",
            "Leave neftune_noise_alpha out, or put the noise into the model that the task builds.",
        ),
    ]


def _of(thing: Any, name: str, default: Any = None) -> Any:
    return getattr(thing, name, default)


def check_new(log: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if a run that begins would need a log's place."""
    if log.exists() and not overwrite:
        raise OutputExistsError(
            f"the log {log} exists.\n"
            "1. To replace it: trace(..., overwrite=True).\n"
            "2. To go on with its run: trainer.train(resume_from_checkpoint=True).\n"
            "3. Or choose another path."
        )


def check_checkpoint(log: Path, step: int, model: torch.nn.Module) -> None:
    """Raise TracingError if a log does not go on from a checkpoint of the Trainer's.

    Args:
        log: Path of the log.
        step: Of the checkpoint.
        model: Which has its parameters.
    """
    other = (
        "\n1. Resume from the checkpoint whose run wrote the log.\n"
        "2. Train from the start, without resume_from_checkpoint, with overwrite=True."
    )
    if not log.exists():
        raise TracingError(f"the checkpoint is at step {step} and there is no log {log}.{other}")
    with open_log(log) as run:
        if step not in run.states():
            there = ", ".join(map(str, run.states())) or "none"
            raise TracingError(
                f"the checkpoint is at step {step}, and {log} has no full state there; it has "
                f"those before the steps {there}.{other}"
            )
        kept = run.state(step)["parameters"]
    for name, parameter in model.named_parameters():
        if not torch.equal(kept[name], parameter.detach().cpu()):
            raise TracingError(
                f"the checkpoint and {log} are not of one run: at step {step} they differ in "
                f"{name!r}.{other}"
            )
