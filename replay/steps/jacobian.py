r"""The derivative of one parameter's step: parameter, gradient and optimizer's state together.

Every supported rule works element by element, so that each block of the derivative of
``(w, g, state) -> (w', state')`` is a diagonal. It is autograd's, of the rule's own description:
second moments and denominators are differentiated here, which a split holds fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from replay.steps.optimizer_state import OptimizerState
from replay.vectors.blocks import total
from tracer.rules.rule import Now, Numbers, State, UpdateRule

W, GRADIENT, BUFFER = "w", "gradient", "buffer"


@dataclass(frozen=True)
class Before:
    """A parameter before a step, flat.

    Attributes:
        w: The parameter.
        gradient: Of the objective, unclipped.
        buffer: The momentum buffer; None if there is none yet.
        moments: Second moments and the like.
        counts: What gradients have no part in, of the state.
    """

    w: Tensor
    gradient: Tensor
    buffer: Tensor | None
    moments: State
    counts: State

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What can be differentiated by, by name."""
        found = {W: self.w, GRADIENT: self.gradient}
        if self.buffer is not None:
            found[BUFFER] = self.buffer
        return found | self.moments


def before(
    rule: UpdateRule, name: str, numbers: Numbers, state: OptimizerState, w: Tensor, g: Tensor
) -> Before:
    """Return a parameter before a step, in the dtype of ``g``, from what the replay found."""
    moments = state.moments.get(name) or (rule.initial(w, numbers) if rule.adapts else {})
    counts = {k: v for k, v in moments.items() if k in rule.counts}
    flat = {k: v.flatten().to(g) for k, v in moments.items() if k not in counts}
    buffer = total(state.buffers[name]) if name in state.buffers else None
    if name in state.buffers and buffer is None:
        buffer = torch.zeros_like(w)
    return Before(
        w.flatten().to(g), g, None if buffer is None else buffer.flatten().to(g), flat, counts
    )


def step(
    rule: UpdateRule, now: Before, numbers: Numbers, factor: float
) -> tuple[dict[str, Tensor], State]:
    """Take the step.

    Args:
        rule: How.
        now: From where.
        numbers: Hyperparameters.
        factor: ``±κ``.

    Returns:
        What is after it, by the names of ``Before.leaves``, and its counts.
    """
    decay = rule.coupled_decay(numbers)
    u = now.gradient * factor
    if decay:
        u = u + now.w * decay
    state = now.moments | now.counts
    held = None if now.buffer is None else partial(getattr, now, BUFFER)
    how, state = rule.step(Now(now.w, lambda: u, state, numbers, held))
    move, buffer = how.forward(u, now.buffer)
    w = now.w if not how.decoupled else now.w * (1 - how.decoupled)
    found = {W: w if move is None else w - move}
    if buffer is not None:
        found[BUFFER] = buffer
    found |= {k: v for k, v in state.items() if k not in rule.counts}
    return found, {k: v for k, v in state.items() if k in rule.counts}


@dataclass(frozen=True)
class Jacobian:
    """Diagonals by (what is after the step, what is before it); absent ones are zero."""

    diagonals: dict[tuple[str, str], Tensor]

    def transposed(self, after: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return cotangents ``(m, numel)`` of what is before the step, from those after it."""
        found: dict[str, Tensor] = {}
        for (above, below), diagonal in self.diagonals.items():
            if above not in after:
                continue
            if below in found:
                found[below].addcmul_(after[above], diagonal)
            else:
                found[below] = after[above] * diagonal
        return found


def jacobian(rule: UpdateRule, now: Before, numbers: Numbers, factor: float) -> Jacobian:
    """Return the derivative of a step; see ``step``."""
    leaves = {k: v.detach().requires_grad_() for k, v in now.leaves.items()}
    moments = {k: leaves[k] for k in now.moments}
    known = Before(leaves[W], leaves[GRADIENT], leaves.get(BUFFER), moments, now.counts)
    diagonals: dict[tuple[str, str], Tensor] = {}
    with torch.enable_grad():
        after, _ = step(rule, known, numbers, factor)
        for above, value in after.items():
            if not value.requires_grad:
                continue
            ones = torch.ones_like(value)
            grads = torch.autograd.grad(
                value, list(leaves.values()), ones, retain_graph=True, allow_unused=True
            )
            diagonals |= {
                (above, below): g for below, g in zip(leaves, grads, strict=True) if g is not None
            }
    return Jacobian(diagonals)
