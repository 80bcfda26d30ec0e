"""Makes the gradients of a step, computed again, those that its optimizer was given.

What a loop did to them between backward and step is not in the log, but each parameter's norm is,
to the last bit. So clipping is found: a limit or a factor for all parameters, for each
optimizer, group or parameter, under which every norm is the logged one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from tracer.records import Step
from tracer.watch.gradients import norms_of, values_of

Gradients = dict[str, Tensor]
Clip = Callable[[Gradients], Gradients]
_KINDS = (2.0, math.inf, 1.0)  # of norms that loops clip
_DIGITS = (3, 5, 7)  # that a limit has
_TRIES = 3  # steps in a row, after which nothing but a factor for all is looked for
_NEAR = 1e-4  # of a norm, that may be another order of summing up


class AppliedGradients:
    """Clips gradients as the steps of a run did.

    Attributes:
        apart: Whether the last step's were clipped otherwise than by one factor for all.
    """

    def __init__(self) -> None:
        self.apart, self._left = False, _TRIES
        self._last: tuple[Gradients, Mapping[str, float]] = {}, {}
        self._clip: Clip | None = None  # by a limit, of the last step

    def first(self, step: Step, gradients: Gradients) -> Gradients:
        """Return the gradients of a step's only evaluation, or of its first one, as applied."""
        self._clip, self.apart = None, False
        wanted = _logged(step)
        found = self._as_run(step, gradients, wanted)
        self._last = found, wanted
        return found

    @property
    def met(self) -> bool:
        """Whether the last step's gradients have the norms of the run's, to the last bit."""
        return _meet(*self._last)

    def _as_run(self, step: Step, gradients: Gradients, wanted: Mapping[str, float]) -> Gradients:
        if step.clip_factor != 1:
            return scaled(gradients, step.clip_factor)
        if _meet(gradients, wanted):
            return gradients
        found = self._found(step, gradients, wanted) if self._left else None
        if found is not None:
            self._left = _TRIES
            return found
        self._left = max(0, self._left - 1)
        return _nearly(gradients, wanted)

    def later(self, gradients: Gradients) -> Gradients:
        """Return those of another evaluation by a closure: clipped by the same limit."""
        return gradients if self._clip is None else self._clip(gradients)

    def _found(
        self, step: Step, gradients: Gradients, wanted: Mapping[str, float]
    ) -> Gradients | None:
        """Return gradients with the logged norms, the likeliest way of clipping first."""
        groups = [[n for n in group.names if n in gradients] for group in step.groups]
        several = step.groups_by_optimizer.values()
        each = [[n for g in some for n in g.names if n in gradients] for some in several]
        ways: tuple[Callable[[Gradients, Mapping[str, float]], Clip | None], ...] = (
            partial(_joined, [list(gradients)]),
            partial(_joined, each),
            partial(_joined, groups),
            _value_clip_of,
            partial(_joined, [[name] for name in gradients]),
        )
        for k, way in enumerate(ways):
            clip = way(gradients, wanted)
            if clip is not None:
                self._clip, self.apart = clip, k > 0
                return clip(gradients)
        return None


def _joined(
    sets: list[list[str]], gradients: Gradients, wanted: Mapping[str, float]
) -> Clip | None:
    """Return what clips each of some sets of gradients by itself; None if no clipping does."""
    clips = []
    for names in filter(None, sets):
        clip = _clip_of({name: gradients[name] for name in names}, wanted)
        if clip is None:
            return None
        clips.append((names, clip))

    def clip_each(found: Gradients) -> Gradients:
        parts = [clip({name: found[name] for name in names}) for names, clip in clips]
        return {name: g for part in parts for name, g in part.items()}

    return clip_each


def scaled(gradients: Gradients, factor: float | Tensor) -> Gradients:
    """Return gradients times one factor."""
    return {name: g * factor for name, g in gradients.items()}


def _clip_of(gradients: Gradients, wanted: Mapping[str, float]) -> Clip | None:
    """Return what clips these gradients to the logged norms; None if no one factor does."""
    if _meet(gradients, wanted):
        return lambda found: found
    of_run, several = [wanted[name] for name in gradients], len(gradients) > 1
    before, after = (math.hypot(*norms) for norms in (_norms(gradients).values(), of_run))
    if not 0 < after < before:
        return None
    for kind in _KINDS:
        size = float(_whole(gradients, kind))
        for digits in _DIGITS[: None if several else 2]:
            clip = _limited(float(f"{after / before * (size + 1e-6):.{digits}g}"), kind)
            if _meet(clip(gradients), wanted):
                return clip
    near = torch.tensor(after / before, dtype=next(iter(gradients.values())).dtype)
    for factor in _neighbours(near) if several else ():  # one norm alone always meets a factor
        result = scaled(gradients, float(factor))
        if _meet(result, wanted):
            return lambda found, factor=float(factor): scaled(found, factor)  # type: ignore[misc]
    return None


def _whole(gradients: Gradients, kind: float) -> Tensor:
    return torch.nn.utils.get_total_norm([values_of(g) for g in gradients.values()], kind)


def _limited(limit: float, kind: float) -> Clip:
    """Return what does as ``clip_grad_norm_`` does."""

    def clip(gradients: Gradients) -> Gradients:
        return scaled(gradients, torch.clamp(limit / (_whole(gradients, kind) + 1e-6), max=1.0))

    return clip


def _value_clip_of(gradients: Gradients, wanted: Mapping[str, float]) -> Clip | None:
    """Return what clamps every element; None if no limit gives the logged norms."""
    if any(g.is_sparse for g in gradients.values()):
        return None
    after = math.hypot(*wanted.values())
    low, high = 0.0, max(float(g.abs().max()) for g in gradients.values())
    for _ in range(40):
        middle = (low + high) / 2
        norm = math.hypot(*_norms(_clamped(gradients, middle)).values())
        low, high = (middle, high) if norm < after else (low, middle)
    for digits in _DIGITS:
        limit = float(f"{high:.{digits}g}")
        if _meet(_clamped(gradients, limit), wanted):
            return lambda found: _clamped(found, limit)
    return None


def _clamped(gradients: Gradients, limit: float) -> Gradients:
    return {name: g.clamp(-limit, limit) for name, g in gradients.items()}


def _neighbours(value: Tensor) -> Iterator[Tensor]:
    """Yield a number, and those beside it of its dtype, nearest first."""
    up = down = value
    yield value
    for _ in range(3):
        up, down = torch.nextafter(up, up + 1), torch.nextafter(down, down - 1)
        yield from (up, down)


def _nearly(gradients: Gradients, wanted: Mapping[str, float]) -> Gradients:
    """Clip by a round limit for all together, where the run's norm is clearly the smaller one."""
    before, after = math.hypot(*_norms(gradients).values()), math.hypot(*wanted.values())
    if not after < before * (1 - _NEAR):
        return gradients
    return _limited(float(f"{after * (before + 1e-6) / before:.5g}"), 2.0)(gradients)


def _meet(gradients: Gradients, wanted: Mapping[str, float]) -> bool:
    return all(wanted[name] == norm for name, norm in _norms(gradients).items())


def _norms(gradients: Gradients) -> dict[str, float]:
    return dict(zip(gradients, map(float, norms_of(list(gradients.values()))), strict=True))


def _logged(step: Step) -> dict[str, float]:
    pairs = (zip(group.names, group.norms, strict=True) for group in step.groups)
    return {name: norm for some in pairs for name, norm in some if not math.isnan(norm)}
