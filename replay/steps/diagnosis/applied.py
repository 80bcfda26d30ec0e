"""The gradient that the run applied, as the step's move tells it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from replay.evaluate.state import Transition
from replay.vectors.blocks import Parts, total
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, UpdateRule

_NOISE = 1e-2  # how much of it may be rounding of the parameters


def applied_gradient(
    rule: UpdateRule | None, now: Transition, buffers: Mapping[str, Parts]
) -> dict[str, Tensor]:
    """Return the gradient before recorded clipping, float64 by parameter.

    Args:
        rule: The update rule; None where it is not known.
        now: The step.
        buffers: The optimizer's, before it.

    Returns:
        Nothing where the move does not tell: second moments, a rate of 0, too much rounding.
    """
    if rule is None or rule.adapts:
        return {}
    found: dict[str, Tensor] = {}
    noise = square = 0.0
    moved, kappa = set(now.step.moved), now.step.clip_factor or 1.0
    for group in now.step.groups:
        n, own = group.hyperparameters, rule.of(group.optimizer)
        for name in moved.intersection(group.names):
            w, after = (s.parameters[name] for s in (now.before, now.after))
            buffer = buffers.get(name)
            held = None if buffer is None else partial(total, buffer)
            one, _ = own.step(Now(w, partial(torch.zeros_like, w), {}, n, held))
            if not one.immediate:
                return {}
            u = _undone(one, w.double() - after.double(), buffer)
            noise += (torch.finfo(w.dtype).eps / one.immediate) ** 2 * float(w.double().norm() ** 2)
            square += float(u.norm() ** 2)
            sign = -1 if n.get("maximize") else 1
            found[name] = (u - own.coupled_decay(n) * w.double()) * sign / kappa
    return found if noise <= _NOISE**2 * square else {}


def _undone(one: Filter, move: Tensor, buffer: Parts | None) -> Tensor:
    """Return ``u`` of a move; see ``Filter``, without diagonals."""
    b = None if buffer is None else total(buffer)
    left = move if b is None else move - one.through * one.keep * b.cpu().reshape(move.shape)
    return left / one.immediate
