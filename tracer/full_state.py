"""A full state of a run, given back to a model and its optimizer; and the digest of parameters."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracer.codec.layout import pack
from tracer.codec.wrapped import rewrapped, unwrapped
from tracer.errors import TracingError
from tracer.joined import apart, members


def digest(parameters: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of parameters as a log's byte row."""
    return zlib.crc32(pack(parameters).data)


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state, copied; of tensors that wrap others their parts."""
    return copy.deepcopy(dict(unwrapped(dict(state))))


@torch.no_grad()
def restore(state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer) -> None:
    """Give model, optimizer and torch's random generators a full state.

    Raises:
        TracingError: It does not fit the model or the optimizer; nothing was changed.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    known = {**state["parameters"], **state["buffers"]}
    if list(tensors) != list(known) and tensors.keys() == known.keys():
        raise TracingError(
            "cannot resume: the model has its parameters or buffers in another order than the log; "
            "build the model of the logged run."
        )
    for name in [*tensors, *known]:
        found = [None if t is None else (t.shape, t.dtype) for t in _pair(name, tensors, known)]
        if found[0] != found[1]:
            raise TracingError(
                f"cannot resume: {name!r} is {_shown(found[0])} in the model and "
                f"{_shown(found[1])} in the log; build the model of the logged run."
            )
    _restore_optimizer(optimizer, state["optimizer"])
    for name, tensor in tensors.items():
        if any(
            n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
        ):
            tensor.data = tensor.data.clone()  # torch writes to no expanded tensor
        tensor.copy_(known[name])
    for name in state.get("zero_gradients", ()):  # the optimizer steps these parameters, too
        tensors[name].grad = torch.zeros_like(tensors[name])
    if state["random"] is None:
        return
    torch.set_rng_state(state["random"]["cpu"])
    for device, cuda in state["random"]["cuda"].items():
        torch.cuda.set_rng_state(cuda, device)


def _restore_optimizer(optimizer: Optimizer, known: Mapping[str, Any]) -> None:
    stored = rewrapped(dict(known))
    try:
        found = apart(optimizer, stored)
        for one, own in found:
            one.load_state_dict(own)
    except (ValueError, KeyError) as error:
        raise TracingError(
            f"cannot resume: the optimizer's state does not fit ({error}); build the optimizer, "
            "with all its groups, as in the logged run."
        ) from error
    for one, own in found:
        _restore_exactly(one, own)
    for one in (*members(optimizer), optimizer):
        one._opt_called = True  # type: ignore[attr-defined]  # else schedulers warn of no step


def _restore_exactly(optimizer: Optimizer, stored: Mapping[str, Any]) -> None:
    """Undo what torch's ``load_state_dict`` does to dtypes: it casts to that of the parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entry in stored["state"].items():
        if not isinstance(number, str):  # text keys are loaded as they are
            parameter = parameters[number]
            optimizer.state[parameter] = _of_dtype(entry, optimizer.state[parameter])


def _of_dtype(stored: Any, loaded: Any) -> Any:
    """Return what was loaded, its tensors as stored where their dtype was changed."""
    if isinstance(stored, Tensor) and isinstance(loaded, Tensor):
        return loaded if loaded.dtype == stored.dtype else stored.to(loaded.device)
    if isinstance(stored, dict) and isinstance(loaded, dict):
        return {key: _of_dtype(stored[key], value) for key, value in loaded.items()}
    if isinstance(stored, (list, tuple)) and isinstance(loaded, (list, tuple)):
        return type(loaded)(_of_dtype(a, b) for a, b in zip(stored, loaded, strict=True))
    return loaded


def _pair(name: str, *tables: Mapping[str, Tensor]) -> list[Tensor | None]:
    return [table.get(name) for table in tables]


def _shown(found: Any) -> str:
    return "missing" if found is None else f"{found[1]} {tuple(found[0])}".removeprefix("torch.")
