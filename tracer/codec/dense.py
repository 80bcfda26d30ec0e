"""Which tensors are their elements' bytes and nothing more: only those are stored."""

from __future__ import annotations

import torch
from torch import Tensor


def kind(tensor: Tensor) -> str:
    """Return ``"dense"``, or what a tensor is instead; its elements are not asked for."""
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return type(tensor).__name__  # wraps others: quantized, sharded, masked, jagged
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse" if "sparse" in str(tensor.layout) else "opaque"
    if tensor.is_quantized:
        return "quantized"
    return "meta" if tensor.is_meta else "dense"
