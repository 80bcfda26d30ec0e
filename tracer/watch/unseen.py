"""Looking at tensors without being seen by what surrounds a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def unseen() -> Iterator[None]:
    """Copy tensors outside ``torch.func``'s transforms and every mode that watches operations.

    Inside ``torch.func.grad`` or ``vmap`` a copy belongs to the transform and dies with it; a fake
    tensor mode refuses real tensors; a default device is a mode, too.
    """
    with (
        temporarily_clear_interpreter_stack(),
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.no_grad(),
    ):
        yield
