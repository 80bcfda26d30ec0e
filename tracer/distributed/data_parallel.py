"""The DistributedDataParallel that spreads a model over ranks, and what of it cannot be traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from tracer.errors import TracingError, warn
from tracer.unwrapping import wrappers

_PLAIN = "allreduce_hook"  # torch's own, which averages as DDP does without a hook
_SHARDING = ("torch.distributed", "deepspeed")
_SHARDED = {
    "FSDPModule": "fully_shard (FSDP2)",
    "FullyShardedDataParallel": "FSDP",
    "DeepSpeedEngine": "DeepSpeed",
}
_INSTEAD = (
    "\n1. Spread the model with DistributedDataParallel, and give the wrapper that."
    "\n2. Train in one process.\n3. docs/scale.md says what tracing it would take."
)


def data_parallel(model: Any) -> DistributedDataParallel | None:
    """Return the object that spreads a model over more than one rank, if there is one."""
    found = [one for one in wrappers(model) if isinstance(one, DistributedDataParallel)]
    many = found and dist.get_world_size(found[0].process_group) > 1
    return found[0] if many else None


def check_spread(model: nn.Module, *, batches: bool) -> None:
    """Raise TracingError if a model is spread in a way that cannot be traced; names it.

    Args:
        model: As the wrapper was given it.
        batches: Whether batches are recorded.

    Warns:
        TracingWarning: There are several ranks, and the model is not spread over them.
    """
    _check_whole(model)
    spread = data_parallel(model)
    if spread is None:
        _say_alone()
        return
    why = next(_faults(spread), None)
    if why is None and synchronised(spread.module):
        why = next(_coupling(spread, batches=batches), None)
    if why is not None:
        raise TracingError(why)


def check_unchanged(spread: DistributedDataParallel) -> None:
    """Raise TracingError if since then the model is spread in a way that cannot be traced."""
    if spread._join_config.enable or spread._comm_hooks:
        why = next(_faults(spread), None)
        if why is not None:
            raise TracingError(why)


def is_coupled(model: Any) -> bool:
    """Return whether layers normalise the batches of all ranks together."""
    spread = data_parallel(model)
    return spread is not None and bool(synchronised(spread.module))


def synchronised(module: nn.Module) -> list[nn.SyncBatchNorm]:
    """Return the layers that normalise the batches of all ranks together."""
    return [one for one in module.modules() if isinstance(one, nn.SyncBatchNorm)]


def _check_whole(model: nn.Module) -> None:
    for module in model.modules():
        for kind in type(module).__mro__:
            known = _SHARDED.get(kind.__qualname__)
            if known is not None and kind.__module__.startswith(_SHARDING):
                raise TracingError(
                    f"the model is sharded by {known}, of which no rank has all parameters, and "
                    f"that is not traced.{_INSTEAD}"
                )
    for name, parameter in model.named_parameters():
        if type(parameter.data).__name__ == "DTensor" or type(parameter).__name__ == "DTensor":
            raise TracingError(
                f"the model's parameter {name!r} is a DTensor, as tensor parallelism makes them, "
                f"and that is not traced.{_INSTEAD}"
            )


def _say_alone() -> None:
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if size > 1:
        warn(
            f"there are {size} ranks, and model= is no DistributedDataParallel: this log takes a "
            "step for this rank's alone.\n"
            "1. Give the wrapper what DistributedDataParallel returned, on every rank.\n"
            "2. If each rank trains a model of its own and has a log of its own, this is right."
        )


def _faults(spread: DistributedDataParallel) -> Iterator[str]:
    """Yield what of a DistributedDataParallel makes a step more than an average over ranks."""
    if spread._join_config.enable:
        yield (
            "the ranks take different numbers of steps (ddp.join()): a rank that has joined takes "
            "no step, and that is not traced.\n"
            "1. Give every rank as many batches: DistributedSampler does."
        )
    if spread.mixed_precision is not None:
        yield (
            "DistributedDataParallel(mixed_precision=...) trains copies of the parameters in "
            "another dtype, and that is not traced.\n1. Use torch.autocast inside task.loss."
        )
    hooks = [hook.__name__ for hook, _ in spread._comm_hooks if hook.__name__ != _PLAIN]
    if hooks:
        yield (
            f"the communication hook {hooks[0]} makes other gradients than the average over "
            "ranks, and that is not traced.\n1. Leave out register_comm_hook."
        )
    moved = {name for name, p in spread.module.named_parameters() if p.requires_grad}
    alone = sorted(moved & spread.parameters_to_ignore)
    if alone:
        yield (
            f"DistributedDataParallel does not average the gradient of {alone[0]!r}, so each rank "
            "moves its own, and that is not traced.\n"
            "1. Do not set _ddp_params_and_buffers_to_ignore or delay_all_reduce_named_params."
        )


def _coupling(spread: DistributedDataParallel, *, batches: bool) -> Iterator[str]:
    """Yield why the micro-batches of the ranks cannot be replayed as one batch."""
    size = spread.process_group.size()
    groups = [one.process_group for one in synchronised(spread.module)]
    if any(group is not None and group.size() != size for group in groups):
        yield (
            f"a SyncBatchNorm normalises the batches of fewer than {size} ranks, and that is not "
            "traced.\n1. Convert without a process group: "
            "nn.SyncBatchNorm.convert_sync_batchnorm(model)."
        )
    if batches:
        yield (
            "SyncBatchNorm makes one batch of what the ranks have, and recorded batches cannot be "
            'joined.\n1. Trace with record="ids" or record="seeds".'
        )


def own_buffers(spread: DistributedDataParallel) -> dict[str, Tensor]:
    """Return the buffers that each rank has for itself, and that a forward pass may depend on.

    In train mode a BatchNorm's does not depend on its own.
    """
    if getattr(spread, "forward_sync_buffers", None) or spread.__dict__.get("broadcast_buffers"):
        return {}
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in spread.module.named_modules()
        if not isinstance(module, _NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }
