"""Whether a replayed step is the one that was logged: parameters and optimizer state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from replay.evaluate.binding import BoundModel
from replay.evaluate.proof import Proof
from replay.evaluate.state import Transition
from replay.steps.displacement import Division
from replay.steps.mismatch import (
    Mismatch,
    explained,
    gradient_causes,
    state_causes,
    tolerance,
)
from tracer.errors import MismatchError
from tracer.rules.filter import Filter

DRIFT = 0.01  # of the way between two snapshots, that rounding may have moved a run


@dataclass
class Checks:
    """Compares replayed steps with the log.

    Attributes:
        path: The log, for messages.
        same_dtype: Whether the replay computes in the run's dtype.
        allow_mismatch: Go on where a step does not reproduce.
        model: In which steps are replayed.
    """

    path: str
    same_dtype: bool
    allow_mismatch: bool
    model: BoundModel

    def at_drift(self, drift: float) -> Checks:
        """Return the checks of a state that was missed by so much: none that it cannot meet.

        Raises:
            MismatchError: That is more than rounding does.
        """
        if drift <= DRIFT or self.allow_mismatch:
            return replace(self, allow_mismatch=True) if drift else self
        raise _too_far(self.path, drift)

    def step(
        self,
        transition: Transition,
        filters: dict[str, Filter],
        found: Division,
        noise: dict[str, Tensor | float],
        added: Callable[[], float],
    ) -> tuple[dict[str, Tensor | float], float]:
        """Compare the replayed step with the logged one, in gradient units.

        Allowed, of the norm of the whole gradient (or, where that does not do, of a tenth of the
        sum of its examples' norms, which may cancel): 1e-9 in float64, 1e-4 in float32, 5e-2 in
        half precision, 2e-3 where the loss casts to bfloat16 (1e-2 more where the replay runs in
        another dtype than the run), carried on as the optimizer carries gradients; and 4 units in
        the last place of the parameter.

        Args:
            transition: The logged step.
            filters: How it moves them.
            found: The step divided.
            noise: How far each buffer may be off before it.
            added: ``Σ_i ‖κ c_i g_i‖``, called if needed.

        Returns:
            The same after it, and how far an element of the gradient may be off.

        Raises:
            MismatchError: Names the step, the parameter and what to look at.
        """
        later, unit = dict(noise), 0.0
        for name, left in found.largest.items():
            w, moved = transition.before.parameters[name], transition.after.parameters[name]
            share, rule = self._share(w.dtype), filters.get(name)
            move: Tensor | float = 0.0
            post = None if rule is None or rule.is_matrix else rule.post
            if rule is not None:
                size = share * found.norm
                unit = max(unit, size)
                move, later[name] = _carried(rule, size, noise.get(name, 0.0))
            if self.allow_mismatch or left <= _least(move, post):
                continue
            rest = found.parts.rounding[name].double()
            if rule is not None and rule.beyond is not None:
                rest = rest - rule.beyond.view_as(rest)
            over = _beyond_last_places(rest, w, moved)
            if rule is not None and not bool((over <= _outer(move, post)).all()):
                size = max(size, share / 10 * added())
                unit = max(unit, size)
                move, later[name] = _carried(rule, size, noise.get(name, 0.0))
            move = _outer(move, post)
            if not bool((over <= move).all()):  # also NaN
                finding = self._finding(transition, name, filters, rest, move, share)
                rests = found.parts.rounding
                raise Mismatch(finding, same_dtype=self.same_dtype, rest=rests)
        return later, unit

    def state(
        self, t: int, name: str, key: str, found: Tensor, stored: Tensor, allowed: Tensor
    ) -> None:
        """Compare a tensor of the optimizer's recomputed state before step ``t`` with the log's.

        Args:
            t: The step.
            name: The parameter.
            key: The tensor's name in torch's state.
            found: Recomputed.
            stored: From the log.
            allowed: By how much its elements may differ, beside rounding of their own.

        Raises:
            MismatchError: Names step, parameter and tensor.
        """
        gap = (found.double() - stored.double()).abs()
        own = self._share(stored.dtype) * stored.double().abs()
        if self.allow_mismatch or bool((gap <= own + allowed.double().to(gap.device)).all()):
            return
        size = max(float(stored.double().norm()), 1e-300)
        finding = (
            f"step {t} of {self.path} does not reproduce: the recomputed {key} of {name!r} differs "
            f"from the one in the log by {float(gap.norm()) / size:.2g} of its norm"
        )
        raise MismatchError(explained(finding, state_causes(self.same_dtype)))

    def _share(self, dtype: torch.dtype) -> float:
        return tolerance(dtype, self.same_dtype, self.model.coarsest)

    def _finding(
        self,
        transition: Transition,
        name: str,
        filters: dict[str, Filter],
        rest: Tensor,
        move: Tensor | float,
        share: float,
    ) -> str:
        where = f"step {transition.step.index} of {self.path} does not reproduce"
        if name not in filters:
            return (
                f"{where}: parameter {name!r} was not in the step (frozen, without gradient or in "
                f"no group), but moved by up to {rest.abs().max():.3g} before the next one"
            )
        whole = torch.as_tensor(move, dtype=torch.float64, device=rest.device).clamp_min(1e-300)
        relative = share * float((rest / whole).norm())
        return (
            f"{where}: the replayed gradient and the logged change of {name!r} differ by "
            f"{relative:.2g} of the gradient's norm"
        )


def require_small(path: Path, proof: Proof) -> None:
    """Raise MismatchError if a run that was taken again is further from the log than rounding."""
    if proof.drift > DRIFT:
        raise _too_far(path, proof.drift)


def _too_far(path: Path | str, drift: float) -> MismatchError:
    finding = (
        f"the steps of {path} do not reproduce: taken again, they missed a snapshot by {drift:.2g} "
        "of the way between two of them"
    )
    return MismatchError(explained(finding, gradient_causes()))  # no one step has a cause


def _beyond_last_places(rest: Tensor, w: Tensor, moved: Tensor) -> Tensor:
    """Return by how much a remainder is more than 4 units in the parameter's last place."""
    largest = torch.maximum(w.abs(), moved.abs()).to(rest.device).double()
    place = 4 * torch.finfo(w.dtype).eps if w.dtype.is_floating_point else 0.0
    return (rest.abs() - place * largest).clamp_min(0)


def _outer(move: Tensor | float, post: Tensor | None) -> Tensor | float:
    return move if post is None else move * post


def _least(move: Tensor | float, post: Tensor | None) -> float:
    """Return the smallest element of ``post move``."""
    if isinstance(move, Tensor):
        return float(_outer(move, post).min())  # type: ignore[union-attr]
    return move if post is None else move * float(post.min())


def _carried(
    rule: Filter, size: float, noise: Tensor | float
) -> tuple[Tensor | float, Tensor | float]:
    """Return how far a gradient off by ``size`` puts off the move, and the buffer.

    That is the move before a diagonal ``E``; matrices are part of it already. A buffer that was
    ``rounded`` is the run's own again.
    """
    each = size if rule.pre is None else rule.pre * size
    later = abs(rule.gain) * each
    if rule.rounded is None:
        later = abs(rule.keep) * noise + later
    if rule.still is not None:
        later = rule.still * noise + (1 - rule.still) * later
    move = abs(rule.direct) * each + abs(rule.through) * later
    return _by_matrices(rule, move) if rule.is_matrix else move, later


def _by_matrices(rule: Filter, move: Tensor | float) -> Tensor | float:
    """Return a bound on what ``E`` makes of a bound on elements, or on all of them together."""
    if rule.post is None:
        sides = [side for side in (rule.inner, rule.outer) if side is not None]
        return move * math.prod(side.bound() for side in sides)
    if isinstance(move, Tensor) and rule.inner is not None:
        move = rule.inner.sizes.times(move)
    move = rule.post * move
    return move if rule.outer is None else rule.outer.sizes.times(move)
