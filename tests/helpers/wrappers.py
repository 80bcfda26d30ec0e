"""A tensor that wraps others and computes little: the shape of quantized optimizer states."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing


class Halves(Tensor):
    """float32 outside, bfloat16 inside."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner):
        self.inner = inner.to(torch.bfloat16)

    def __repr__(self):
        return f"Halves({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        if function is torch.ops.aten.detach.default:
            found = cls(arguments[0].inner)
            return return_and_correct_aliasing(function, arguments, named or {}, found)
        raise NotImplementedError(f"{cls.__name__}: {function}")
