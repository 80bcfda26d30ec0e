"""What the optimizer holds between steps: recomputed, and compared with the states on file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.state import Optimizer, States
from replay.steps.checking import Checks
from replay.steps.recorded import recorded_state
from replay.vectors.blocks import Parts, total
from tracer.errors import LogError
from tracer.records import OPTIMIZER, Step
from tracer.rules.rule import Numbers, State, UpdateRule


@dataclass(frozen=True)
class OptimizerState:
    """The optimizer between two steps.

    Attributes:
        moments: By parameter, counts and second moments, in the run's dtype.
        buffers: By parameter, the momentum buffer in parts, float64; one that has none is absent.
        noise: By parameter, how far rounding may have put a buffer off.
        unit: How far it may have put an element of any gradient off.
        tensors: By parameter, the dtypes of its hyperparameters that are tensors, and those that
            are words.
    """

    moments: dict[str, State] = field(default_factory=dict)
    buffers: dict[str, Parts] = field(default_factory=dict)
    noise: dict[str, Tensor | float] = field(default_factory=dict)
    unit: float = 0.0
    tensors: Mapping[str, Mapping[str, torch.dtype | str]] = field(default_factory=dict)

    def as_history(self) -> OptimizerState:
        """Return the same with all of each buffer counted as history."""
        return replace(self, buffers={n: (None, None, total(b)) for n, b in self.buffers.items()})

    def as_tensors(self, name: str, numbers: Numbers) -> Numbers:
        """Return hyperparameters as torch has them of a parameter: some are tensors, some words."""
        known = self.tensors.get(name)
        if not known:
            return numbers
        held = {
            k: d if isinstance(d, str) else torch.tensor(numbers[k], dtype=d, device="cpu")
            for k, d in known.items()
            if isinstance(d, str) or k in numbers  # schedulers add more to a group
        }
        return {**numbers, **held}


class StoredOptimizer:
    """The optimizer's states on file, in the terms of its update rule.

    Args:
        states: The run's states.
        rule: Its update rule.
        device: Where tensors go.
    """

    def __init__(self, states: States, rule: UpdateRule, device: torch.device) -> None:
        self._states, self._rule, self._device = states, rule, device
        self._stored = states.stored

    def before(self, t: int) -> tuple[int, OptimizerState]:
        """Return the last state before step ``t`` that is the run's to the bit, and its step.

        That is the one before ``t`` itself, wherever the log has states, unless steps that are
        taken again differ.

        Raises:
            LogError: There is none.
        """
        at = max((k for k in self._stored if k <= t), default=None)
        if at is None:
            raise LogError(
                f"{self._states.log.path} holds no full state before step {t}, so what the "
                "optimizer remembered then is unknown; begin the window later (steps=), or see "
                "states()."
            )
        again = self._states.optimizer_again(t)
        at, stored = (at, self._states.optimizer(at)) if again is None else (t, again)
        moments, found = self._held(at, stored)
        buffers: dict[str, Parts] = {n: (None, None, b.double()) for n, b in found.items()}
        moments = {n: s for n, s in moments.items() if s}
        return at, OptimizerState(moments, buffers, tensors=_tensors(stored.groups))

    def renewed(self, known: OptimizerState, t: int, checks: Checks) -> OptimizerState:
        """Return what is known before step ``t``, compared with the stored state if there is one.

        Where a step that does not reproduce is let through, stored second moments take the place
        of recomputed ones. Else nothing depends on where states are on file.

        Raises:
            MismatchError: The stored state is not the recomputed one.
        """
        if t not in self._stored:
            return known
        moments = dict(known.moments)
        optimizer = self._states.optimizer(t)
        states, buffers = self._held(t, optimizer)
        for name, stored in states.items():
            rule, buffer = self._rule_of(optimizer.groups[name]), buffers.get(name)
            if stored and name in moments and not rule.recorded:
                self._compare_moments(t, name, stored, known, checks, rule)
                if checks.allow_mismatch:
                    moments[name] = stored
            if buffer is not None and name in known.buffers and rule.buffer not in stored:
                self._compare_buffer(t, name, buffer, known, checks, rule)
        return replace(known, moments=moments, tensors=_tensors(optimizer.groups))

    def as_in_run(self, known: OptimizerState, t: int) -> OptimizerState:
        """Return what is known before step ``t``, with the run's own state where a rule needs it.

        Raises:
            LogError: It is not on file, and steps taken again do not lead to it.
        """
        if not self._rule.recorded:
            return known
        optimizer = recorded_state(self._states, t)
        own = [n for n, group in optimizer.groups.items() if self._rule_of(group).recorded]
        stored = {n: optimizer.states.get(n, {}) for n in own}
        states, _ = self._held(t, optimizer._replace(states=stored))
        return replace(known, moments={**known.moments, **states})

    def after(self, t: int, name: str) -> State:
        """Return a parameter's state after step ``t``, if its rule needs the run's own."""
        return self.as_in_run(OptimizerState(), t + 1).moments.get(name, {})

    def later(self, step: Step) -> dict[str, Numbers]:
        """Return the hyperparameters that a rule needs as they were after a step.

        They are those of its optimizer's next step, or of the final state.
        """
        if not self._rule.after:
            return {}
        missing, found = set(step.groups_by_optimizer), dict[str, Mapping[str, Any]]()
        t = step.index + 1
        while missing and t < self._states.last:
            groups = [g for g in self._states.step(t).groups if g.optimizer in missing]
            found |= {name: group.hyperparameters for group in groups for name in group.names}
            missing -= {group.optimizer for group in groups}
            t += 1
        if missing:
            found = {**self._states.optimizer(self._states.last).groups, **found}
        wanted = {n: [k for k in self._rule.after if k in g] for n, g in found.items()}
        return {n: {f"{k} after": float(found[n][k]) for k in ks} for n, ks in wanted.items()}

    def _rule_of(self, group: Mapping[str, Any]) -> UpdateRule:
        """Return the rule of a group's parameters."""
        return self._rule.of(int(group.get(OPTIMIZER, 0)))

    @staticmethod
    def _compare_moments(
        t: int, name: str, stored: State, known: OptimizerState, checks: Checks, rule: UpdateRule
    ) -> None:
        unit = known.unit * float(stored.get("step", t + 1)) ** 0.5
        for key, found in known.moments[name].items():
            allowed = _allowed(rule, key, stored[key], unit)
            checks.state(t, name, key, found, stored[key], allowed)

    @staticmethod
    def _compare_buffer(
        t: int, name: str, buffer: Tensor, known: OptimizerState, checks: Checks, rule: UpdateRule
    ) -> None:
        noise = known.noise.get(name, 0.0)
        allowed = torch.as_tensor(noise, dtype=torch.float64, device=buffer.device)
        found = total(known.buffers[name])
        found = torch.zeros_like(buffer) if found is None else found
        checks.state(t, name, rule.buffer or "buffer", found, buffer, allowed)

    def _held(self, t: int, optimizer: Optimizer) -> tuple[dict[str, State], dict[str, Tensor]]:
        """Return each parameter's state before step ``t``, and the buffers that there are."""
        states, buffers = {}, {}
        for name, stored in optimizer.states.items():
            rule, w = self._rule_of(optimizer.groups[name]), partial(self._parameter, t, name)
            state, buffer = rule.held(stored, optimizer.groups[name], w)
            states[name] = {k: v.to(self._device if v.dim() else "cpu") for k, v in state.items()}
            if buffer is not None:
                buffers[name] = buffer.to(self._device)
        return states, buffers

    def _parameter(self, t: int, name: str) -> Tensor:
        return self._states.at(t).parameters[name]


def _allowed(rule: UpdateRule, key: str, value: Tensor, unit: float) -> Tensor:
    """Return how far a gradient off by ``unit`` puts a tensor of the state off."""
    if key in rule.counts:
        return torch.zeros((), dtype=torch.float64, device=value.device)
    if key in rule.linear:
        return torch.full((), unit, dtype=torch.float64, device=value.device)
    return 2 * value.abs().sqrt() * unit + unit**2


def _tensors(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, torch.dtype | str]]:
    """Return what no number says of hyperparameters: dtypes of tensors, and words, by parameter."""
    found: dict[str, dict[str, torch.dtype | str]] = {}
    for name, group in groups.items():
        spread = dict(group)
        for key, value in group.items():
            if isinstance(value, (list, tuple)) and key != "params":
                spread.update({f"{key}.{k}": one for k, one in enumerate(value)})
        known: dict[str, torch.dtype | str] = {
            k: v.dtype for k, v in spread.items() if isinstance(v, Tensor) and v.numel() == 1
        }
        known |= {k: v for k, v in group.items() if isinstance(v, str)}
        if known:
            found[name] = known
    return found
