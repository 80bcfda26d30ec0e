"""Tensors to flat byte rows and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer import schema

Row: TypeAlias = NDArray[np.uint8]


def pack(tensors: Mapping[str, Tensor]) -> Row:
    """Return tensors as one flat byte row, in order."""
    parts = [
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        for tensor in tensors.values()
        if tensor.numel()
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def unpack(row: NDArray[np.uint8], fields: Sequence[schema.Field]) -> dict[str, Tensor]:
    """Return the tensors of a flat byte row, each with memory of its own."""
    found = {}
    for field in fields:
        data = torch.from_numpy(row[field.offset : field.offset + field.nbytes].copy())
        found[field.name] = data.view(field.dtype).reshape(field.shape)
    return found
