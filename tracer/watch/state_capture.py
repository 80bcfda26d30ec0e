"""Full states: what a killed run goes on from. Parameters, buffers, optimizer, random state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracer.codec.dense import kind
from tracer.codec.nested import NestedError, encode
from tracer.errors import TracingError, warn
from tracer.records import RandomState

_AT_LEAST = 100  # steps between states


class RunState:
    """What a run is between two steps, beside what its log has of every step.

    Args:
        model: Its parameters and buffers belong to a full state.
        optimizer: Likewise its state and groups.
        devices: CUDA devices whose random generators belong to it.
        every: Steps between full states; None is what takes under 1 % of the log, at least 100.
        row_bytes: What a step adds to the log.

    Attributes:
        steps: How many steps were taken, also after tracing has ended.
        epoch: That of the last step.
        random: The generators after it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        devices: Sequence[int],
        *,
        every: int | None,
        row_bytes: int,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._devices = tuple(devices)
        self.steps, self.random = 0, random_state(devices)
        self.epoch: int | None = None
        self._every, self._row_bytes = every, row_bytes
        self._complained = False

    def step_taken(self, epoch: int | None) -> None:
        """Note what the run is after one more step."""
        self.steps, self.epoch = self.steps + 1, epoch
        self.random = random_state(self._devices)

    def restore(self, steps: int, state: Mapping[str, Any]) -> None:
        """Go to a full state of the log, and give it to model, optimizer and torch's generators.

        Raises:
            TracingError: It does not fit the model or the optimizer; nothing was changed.
        """
        restore(state, self._model, self._optimizer)
        self.steps, self.epoch = steps, state["epoch"]
        self.random = random_state(self._devices)

    @property
    def every(self) -> int:
        """Steps between full states; first read when the optimizer has its state."""
        if self._every is None:
            tensors = [*self._model.parameters(), *self._model.buffers(), torch.get_rng_state()]
            size = sum(t.nbytes for t in tensors) + _bytes(dict(self._optimizer.state))
            self._every = max(_AT_LEAST, math.ceil(100 * size / max(1, self._row_bytes)))
        return self._every

    @property
    def is_due(self) -> bool:
        """Whether the full state before the next step is one of the regular ones."""
        return self.steps == 0 or self.steps % self.every == 0

    def capture(self, buffers: Mapping[str, Tensor], *, keeps_zeros: bool = False) -> bytes | None:
        """Return the full state, encoded; None, with one warning, if a log cannot store it.

        Args:
            buffers: The model's; a forward may have moved them on.
            keeps_zeros: Whether gradients are zeroed before the next step, and not made None.
        """
        try:
            whole = {
                "parameters": dict(self._model.named_parameters()),
                "buffers": dict(buffers),
                "optimizer": self._optimizer_state(),
                "random": {"cpu": self.random.cpu, "cuda": self.random.cuda},
                "epoch": self.epoch,
                "zero_gradients": self._zero_gradients(all_are=keeps_zeros),
            }
            return encode(whole, "the state")
        except Exception as error:  # whatever an optimizer keeps
            self._complain(error)
            return None

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            known = isinstance(error, NestedError)
            why = str(error) if known else f"{type(error).__name__}: {error}"
            warn(f"this run can be replayed, but cannot be resumed: {shorten(why, 400)}")
        self._complained = True

    def _zero_gradients(self, *, all_are: bool) -> list[str]:
        """Return the parameters that begin the next step with a gradient, which is zero by then."""
        found = [(n, p.grad) for n, p in self._model.named_parameters() if p.grad is not None]
        if all_are:
            return [name for name, _ in found]
        return [name for name, g in found if not (g.is_sparse or bool(g.any()))]

    def _optimizer_state(self) -> dict[str, Any]:
        """Return what ``state_dict`` does, without calling the user's hooks."""
        groups = self._optimizer.param_groups
        number = {id(p): k for k, p in enumerate(p for g in groups for p in g["params"])}
        state: dict[Any, Any] = {}
        for key, entry in self._optimizer.state.items():
            plain = dict(entry) if isinstance(entry, Mapping) else entry
            if isinstance(key, str):
                state[key] = plain
            elif id(key) in number:
                state[number[id(key)]] = plain
            elif not isinstance(key, Tensor):  # a tensor's group was removed: nothing reads it
                raise NestedError(f"the optimizer's state has the key {key!r}; a log takes text.")
        return {
            "state": state,
            "param_groups": [
                {**group, "params": [number[id(p)] for p in group["params"]]} for group in groups
            ],
        }


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes if kind(value) == "dense" else 0
    if isinstance(value, Mapping):
        return sum(_bytes(item) for item in value.values())
    return sum(_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0


def random_state(devices: Sequence[int]) -> RandomState:
    """Return torch's generators as they are now, those of some CUDA devices with the CPU's."""
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
    return RandomState(torch.get_rng_state(), cuda)


@torch.no_grad()
def restore(state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer) -> None:
    """Give model, optimizer and torch's random generators a full state.

    Raises:
        TracingError: It does not fit the model or the optimizer; nothing was changed.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stored = {**state["parameters"], **state["buffers"]}
    if list(tensors) != list(stored) and tensors.keys() == stored.keys():
        raise TracingError(
            "cannot resume: the model has its parameters or buffers in another order than the log; "
            "build the model of the logged run."
        )
    for name in [*tensors, *stored]:
        found = [None if t is None else (t.shape, t.dtype) for t in _pair(name, tensors, stored)]
        if found[0] != found[1]:
            raise TracingError(
                f"cannot resume: {name!r} is {_shown(found[0])} in the model and "
                f"{_shown(found[1])} in the log; build the model of the logged run."
            )
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise TracingError(
            f"cannot resume: the optimizer's state does not fit ({error}); build the optimizer, "
            "with all its groups, as in the logged run."
        ) from error
    _restore_exactly(optimizer, state["optimizer"])
    optimizer._opt_called = True  # type: ignore[attr-defined]  # else schedulers warn of no step
    for name, tensor in tensors.items():
        if any(
            n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
        ):
            tensor.data = tensor.data.clone()  # torch writes to no expanded tensor
        tensor.copy_(stored[name])
    for name in state.get("zero_gradients", ()):  # the optimizer steps these parameters, too
        tensors[name].grad = torch.zeros_like(tensors[name])
    torch.set_rng_state(state["random"]["cpu"])
    for device, cuda in state["random"]["cuda"].items():
        torch.cuda.set_rng_state(cuda, device)


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
