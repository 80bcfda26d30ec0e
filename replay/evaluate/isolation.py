"""Computes as a fresh program would: what is set around a replay is neither seen nor changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

_DEVICES = ("cpu", "cuda")


@contextmanager
def usual_surroundings(device: torch.device, *, allow_tf32: bool) -> Iterator[None]:
    """Compute as at the top level of a fresh program; leave everything as found.

    Args:
        device: Takes the place of a default device, for tensors that the task makes without one.
        allow_tf32: Let a GPU round what it multiplies to TF32.
    """
    with ExitStack() as stack:
        stack.enter_context(_untouched_randomness())
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(device)
        stack.enter_context(torch.inference_mode(mode=False))  # which no_grad ends with
        stack.enter_context(_no_autocast())
        stack.enter_context(_no_fast_path())
        stack.enter_context(_rounded_products(allow_tf32))
        yield


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """Leave torch's, NumPy's and Python's global random state as found."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    # fork_rng saves every CUDA device too
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Be outside every autocast, also as to its cache.

    An inner autocast keeps casts of weights until the outermost one ends: those of earlier states.
    """
    found = [torch.is_autocast_enabled(device) for device in _DEVICES]
    depth = 0
    while torch.autocast_decrement_nesting() >= 0:
        depth += 1
    torch.autocast_increment_nesting()  # back to none
    torch.clear_autocast_cache()
    try:
        for device in _DEVICES:
            torch.set_autocast_enabled(device, False)
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()
        for device, before in zip(_DEVICES, found, strict=True):
            torch.set_autocast_enabled(device, before)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Let torch's transformer layers give the same values with and without a graph.

    Without one they leave padding out of the sequences, or give zeros there.
    """
    found = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(found)


@contextmanager
def _rounded_products(allowed: bool) -> Iterator[None]:
    """Let a GPU round what it multiplies to TF32, or not."""
    backends = torch.backends
    leaves: list[Any] = [backends.cuda.matmul, backends.cudnn]
    told = [(one, "allow_tf32", _told(partial(getattr, one, "allow_tf32"))) for one in leaves]
    old = [setting for setting in told if setting[2] is not None]
    medium = _told(torch.get_float32_matmul_precision) == "medium"  # a kind of True
    new = _own_precisions() if hasattr(backends.cuda.matmul, "fp32_precision") else []
    try:
        _set(reversed(new))
        _set((one, name, allowed) for one, name, _ in old)
        # each operation's own, whatever it would inherit
        _set((one, name, "tf32" if allowed else "ieee") for one, name, _ in new[2:])
        yield
    finally:
        _set(old)
        if medium:
            torch.set_float32_matmul_precision("medium")
        _set(reversed(new))


def _told(read: Callable[[], Any]) -> Any:
    """Return an older setting; None where torch refuses, as newer ones say something else."""
    try:
        return read()
    except RuntimeError:
        return None


def _own_precisions() -> list[tuple[Any, str, Any]]:
    """Return the newer settings, each without what it inherits; they are cleared meanwhile."""
    backends: Any = torch.backends
    nested = [backends, backends.cudnn, backends.cuda.matmul]
    nested += [backends.cudnn.conv, backends.cudnn.rnn]
    found = []
    for one in nested:  # from the outermost on: what is read below it is then its own
        found.append((one, "fp32_precision", one.fp32_precision))
        one.fp32_precision = "none"
    return found


def _set(settings: Any) -> None:
    for one, name, value in settings:
        setattr(one, name, value)
