"""A model's state as a checkpoint that other programs load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from replay.results.output import check_free, moved_when_whole
from tracer.errors import InputError


def check_checkpoint(target: Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raise unless a ``state_dict`` can be written; see ``save_state_dict``."""
    if target.suffix not in (".pt", ".safetensors"):
        raise InputError(
            f"a checkpoint ends in .pt or .safetensors, found {target.name!r}; rename it."
        )
    check_free(target, None, overwrite=overwrite, inputs=inputs)


def save_state_dict(
    state: Mapping[str, Tensor],
    target: Path,
    *,
    overwrite: bool = False,
    inputs: Iterable[str | Path] = (),
) -> None:
    """Write a ``state_dict``.

    Args:
        state: Tensors by name.
        target: ``.pt``, which ``torch.load(weights_only=True)`` reads, or ``.safetensors``.
        overwrite: Whether it may replace a file.
        inputs: Files that it may never replace.

    Raises:
        InputError: It has another ending, or cannot be written.
    """
    check_checkpoint(target, overwrite=overwrite, inputs=inputs)
    own = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    with moved_when_whole(target, overwrite=overwrite) as partial:
        if target.suffix == ".pt":
            torch.save(own, partial)
            return
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise InputError(
                "a .safetensors file needs the package safetensors: pip install safetensors; a .pt "
                "file needs nothing."
            ) from error
        save_file(own, partial)
