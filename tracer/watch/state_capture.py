"""Full states: what a killed run goes on from. Parameters, buffers, optimizer, random state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracer.codec.dense import kind
from tracer.codec.nested import NestedError, encode
from tracer.codec.wrapped import wrapped
from tracer.errors import warn
from tracer.full_state import restore
from tracer.joined import NAMES, Joined, combined, members
from tracer.records import RandomState

_AT_LEAST = 100  # steps between states


class RunState:
    """What a run is between two steps, beside what its log has of every step.

    Args:
        model: Its parameters and buffers belong to a full state.
        optimizer: Likewise its state and groups.
        devices: CUDA devices whose random generators belong to it.
        every: Steps between full states; None is what takes under 1 % of the log, at least 100;
            0 is where an epoch begins.
        row_bytes: What a step adds to the log.
        sparse: Whether a replay takes steps again from these states.
        others: Gives the generators of the run's other processes after so many steps.

    Attributes:
        steps: How many steps were taken, also after tracing has ended.
        epoch: That of the last step.
        next_epoch: That of the next one.
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
        sparse: bool = False,
        others: Callable[[int], list[RandomState]] = lambda steps: [],
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._devices = tuple(devices)
        self.steps, self.random = 0, random_state(devices)
        self.epoch: int | None = None
        self.next_epoch: int | None = None
        self._every, self._row_bytes = every, row_bytes
        self._complained, self._sparse, self._others = False, sparse, others
        self._wanted: int | None = None  # a step that has one besides the regular ones

    def want(self, *, state: bool) -> None:
        """Make the full state before the next step one that is kept."""
        self._wanted = self.steps if state else self._wanted

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
            self._every = max(_AT_LEAST, math.ceil(100 * self.nbytes / max(1, self._row_bytes)))
        return self._every

    @property
    def nbytes(self) -> int:
        """Bytes of a full state, about; less before the optimizer has its state."""
        tensors = [*self._model.parameters(), *self._model.buffers(), torch.get_rng_state()]
        return sum(t.nbytes for t in tensors) + _bytes(dict(self._optimizer.state))

    @property
    def is_due(self) -> bool:
        """Whether the full state before the next step is one that is kept."""
        if self.steps in (0, self._wanted):
            return True
        return self.steps % self.every == 0 if self.every else self.next_epoch != self.epoch

    def capture(self, buffers: Mapping[str, Tensor], *, keeps_zeros: bool = False) -> bytes | None:
        """Return the full state, encoded; None, with one warning, if a log cannot store it.

        Args:
            buffers: The model's; a forward may have moved them on.
            keeps_zeros: Whether gradients are zeroed before the next step, and not made None.
        """
        ranks = self._others(self.steps)
        try:
            whole = {
                "parameters": dict(self._model.named_parameters()),
                "buffers": dict(buffers),
                "optimizer": self._optimizer_state(),
                "random": _nested(self.random),
                "ranks": [_nested(state) for state in ranks],
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
            why = shorten(str(error) if known else f"{type(error).__name__}: {error}", 400)
            warn(f"this run can be replayed, but cannot be resumed: {why}{self._more()}")
        self._complained = True

    def _more(self) -> str:
        """Return what follows for a replay that takes steps again from full states."""
        if not self._sparse:
            return ""
        return (
            f"\nFrom step {self.steps} on, the log has no full state: a replay takes all of these "
            "steps again from the last one before.\n"
            "1. Pass snapshot_every=1, which logs the parameters of every step."
        )

    def _zero_gradients(self, *, all_are: bool) -> list[str]:
        """Return the parameters that begin the next step with a gradient, which is zero by then."""
        found = [(n, p.grad) for n, p in self._model.named_parameters() if p.grad is not None]
        if all_are:
            return [name for name, _ in found]
        return [name for name, g in found if not (g.is_sparse or bool(g.any()))]

    def _optimizer_state(self) -> dict[str, Any]:
        """Return what ``state_dict`` does; of several optimizers with names, in their order."""
        optimizer = self._optimizer
        if not isinstance(optimizer, Joined):
            return _plain_state(optimizer)
        names = {id(p): name for name, p in self._model.named_parameters()}
        found = combined([_plain_state(one) for one in members(optimizer)])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return {**found, NAMES: [names[id(p)] for p in parameters]}


def _plain_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return what ``state_dict`` does, without calling the user's hooks."""
    groups = optimizer.param_groups
    number = {id(p): k for k, p in enumerate(p for g in groups for p in g["params"])}
    state: dict[Any, Any] = {}
    for key, entry in optimizer.state.items():
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


def _nested(state: RandomState) -> dict[str, Any]:
    return {"cpu": state.cpu, "cuda": state.cuda}


def _bytes(value: Any) -> int:
    if (found := wrapped(value)) is not None:
        return _bytes(found.tensors)
    if isinstance(value, Tensor):
        return value.nbytes if kind(value) == "dense" else 0
    if isinstance(value, Mapping):
        return sum(_bytes(item) for item in value.values())
    return sum(_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0


def random_state(devices: Sequence[int]) -> RandomState:
    """Return torch's generators as they are now, those of some CUDA devices with the CPU's."""
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
    return RandomState(torch.get_rng_state(), cuda)
