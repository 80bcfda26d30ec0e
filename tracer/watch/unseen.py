"""Looking at tensors without being seen by what surrounds a forward pass."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _disable_current_modes


class Unseen:
    """A context for copying tensors outside of ``torch.func``, of modes and of autograd.

    Inside ``torch.func.grad`` or ``vmap`` a copy belongs to the transform and dies with it; a fake
    tensor mode refuses real tensors; a default device is a mode, too. Mostly there is none of them,
    and torch's own contexts would take longer than the copy.
    """

    def __enter__(self) -> None:
        self._left: ExitStack | None = None
        if _surrounded():
            self._left = ExitStack()
            self._left.enter_context(temporarily_clear_interpreter_stack())
            self._left.enter_context(_disable_current_modes())
        self._function = torch._C.DisableTorchFunction()
        self._function.__enter__()
        self._gradients = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._set_grad_enabled(self._gradients)
        self._function.__exit__(None, None, None)
        if self._left is not None:
            self._left.close()


def _surrounded() -> bool:
    """Return whether a transform or a mode is active."""
    return bool(
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or _len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    )
