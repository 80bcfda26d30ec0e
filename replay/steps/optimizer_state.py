"""What an optimizer remembers between steps, recomputed and read from the log's full states."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from replay.steps.checking import Checks
from replay.vectors.blocks import Parts, total
from tracer.errors import LogError
from tracer.log.read.run_log import RunLog
from tracer.rules.rule import State, UpdateRule


@dataclass(frozen=True)
class Memory:
    """The optimizer between two steps.

    Attributes:
        moments: By parameter, counts and second moments, in the run's dtype.
        buffers: By parameter, the momentum buffer in parts, float64; one that has none is absent.
        noise: By parameter, how far rounding may have put a buffer off.
        unit: How far it may have put an element of any gradient off.
    """

    moments: dict[str, State] = field(default_factory=dict)
    buffers: dict[str, Parts] = field(default_factory=dict)
    noise: dict[str, Tensor | float] = field(default_factory=dict)
    unit: float = 0.0

    def as_history(self) -> Memory:
        """Return the same with all of each buffer counted as history."""
        return replace(self, buffers={n: (None, None, total(b)) for n, b in self.buffers.items()})


class StoredStates:
    """The optimizer's part of a log's full states.

    Args:
        log: The run.
        rule: Its update rule.
        device: Where tensors go.
    """

    def __init__(self, log: RunLog, rule: UpdateRule, device: torch.device) -> None:
        self._log, self._rule, self._device = log, rule, device
        self._known = set(log.states())

    def before(self, t: int) -> tuple[int, Memory]:
        """Return the last stored state before step ``t`` and its step.

        Raises:
            LogError: There is none.
        """
        at = max((k for k in self._known if k <= t), default=None)
        if at is None:
            raise LogError(
                f"{self._log.path} holds no full state before step {t}, so what the optimizer "
                "remembered then is unknown; begin the window later (steps=), or see states()."
            )
        stored = self._read(at)
        moments = {name: self._moments(state) for name, state in stored.items()}
        buffers: dict[str, Parts] = {}
        for name, state in stored.items():
            buffer = self._buffer(state)
            if buffer is not None:
                buffers[name] = (None, None, buffer.double())
        return at, Memory({n: s for n, s in moments.items() if s}, buffers)

    def renewed(self, memory: Memory, t: int, checks: Checks) -> Memory:
        """Return what is known before step ``t``: with stored second moments, if there are any.

        Raises:
            MismatchError: The stored state is not the recomputed one.
        """
        if t not in self._known:
            return memory
        moments = dict(memory.moments)
        for name, state in self._read(t).items():
            stored, buffer = self._moments(state), self._buffer(state)
            if stored and name in moments:
                count = float(stored["step"])
                for key, value in stored.items():
                    unit = memory.unit * count**0.5
                    allowed = 2 * value.abs().sqrt() * unit + unit**2
                    checks.state(t, name, key, moments[name][key], value, allowed)
                moments[name] = stored
            if buffer is not None and name in memory.buffers:
                allowed = torch.as_tensor(memory.noise.get(name, 0.0), dtype=torch.float64)
                found = total(memory.buffers[name])
                found = torch.zeros_like(buffer) if found is None else found
                checks.state(t, name, str(self._rule.buffer), found, buffer, allowed)
        return replace(memory, moments=moments)

    def _read(self, t: int) -> dict[str, State]:
        """Return the optimizer's state before step ``t`` by the parameters' names."""
        groups = self._log.step(min(t, len(self._log) - 1)).groups
        names = [name for group in groups for name in group.names]
        stored = self._log.state(t)["optimizer"]["state"]
        return {names[int(k)]: state for k, state in stored.items() if str(k).isdigit()}

    def _moments(self, state: State) -> State:
        if not self._rule.adapts:
            return {}
        return {
            key: torch.as_tensor(value).to(self._device if value.dim() else "cpu")
            for key, value in state.items()
            if key != self._rule.buffer
        }

    def _buffer(self, state: State) -> Tensor | None:
        buffer = state.get(self._rule.buffer) if self._rule.buffer else None
        return None if buffer is None else buffer.to(self._device)
