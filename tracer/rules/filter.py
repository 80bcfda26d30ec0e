r"""One step of an optimizer as a linear map of what drives it.

With its non-linear factors (Adam's denominator) taken as they were in the run, a step of a
parameter is linear in ``u``, the signed, clipped gradient plus decay:

    b' = keep b + gain D u,      w - w' = E (direct D u + through b') + decoupled w,

``b`` the momentum buffer, ``D`` (``inside``) and ``E`` (``outside``) diagonal. ``forward`` splits
steps, ``backward``, its transpose, carries gradients of later steps to earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Place = Callable[[], Tensor | None]


def _new() -> None:
    """Leave it to torch to take memory."""


@dataclass(frozen=True)
class Filter:
    """One step of one parameter as a linear map; see the module.

    Attributes:
        direct: Weight of what drives this step.
        through: Weight of the buffer after it.
        keep: What stays of the buffer.
        gain: What enters it.
        inside: ``D``, the parameter's shape; None is 1.
        outside: ``E``, likewise.
        coupled: Weight decay that is part of ``u``.
        decoupled: Weight decay beside it (AdamW).
    """

    direct: float = 0.0
    through: float = 0.0
    keep: float = 1.0
    gain: float = 0.0
    inside: Tensor | None = None
    outside: Tensor | None = None
    coupled: float = 0.0
    decoupled: float = 0.0

    def forward(
        self, u: Tensor | None, b: Tensor | None, move: Place = _new, buffer: Place = _new
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the move ``w - w'`` (without ``decoupled``) and ``b'``; None is zero.

        Args:
            u: What drives the step.
            b: The buffer before it.
            move: Gives the tensor in which the move is to be, or None; called if it is not zero.
            buffer: Likewise for ``b'``.
        """
        u = u if u is None or self.inside is None else u * self.inside
        b = _sum(self.keep, b, self.gain, u, buffer)
        moved = _sum(self.direct, u, self.through, b, move)
        return moved if moved is None or self.outside is None else moved.mul_(self.outside), b

    @property
    def adds_plainly(self) -> bool:
        """Whether all that ``backward`` needs of ``q`` is ``through`` times it in ``asked``."""
        return bool(self.through) and not self.direct and self.outside is None

    def backward(self, q: Tensor | None, asked: Tensor | None) -> tuple[Tensor, float]:
        """Return ``λ``: what ``q`` and, through the buffer, all later steps ask of ``u``.

        Of the buffer before this step they then ask ``keep`` times what ``asked`` has become.

        Args:
            q: Gradients at this step, ``(m, ...)``; None only where ``adds_plainly`` and the
                caller has added them to ``asked``.
            asked: What later steps ask of the buffer after it, likewise; ``q``'s part is added.
                None is zero, and possible only where ``through`` is 0.

        Returns:
            A tensor, which may be ``asked`` itself, and a number; ``λ`` is their product.
        """
        if asked is not None and self.through and q is not None:
            if self.outside is None:
                asked.add_(q, alpha=self.through)
            else:
                asked.addcmul_(q, self.outside, value=self.through)
        if asked is not None and not self.direct:
            return (asked, self.gain) if self.inside is None else (asked * self.inside, self.gain)
        assert q is not None
        result = q * self.direct if self.outside is None else q * self.outside * self.direct
        if asked is not None and self.gain:
            result.add_(asked, alpha=self.gain)
        return (result if self.inside is None else result.mul_(self.inside)), 1.0

    def flat(self, dtype: torch.dtype) -> Filter:
        """Return the filter for flattened vectors of a dtype."""
        inside, outside = (
            None if d is None else d.flatten().to(dtype) for d in (self.inside, self.outside)
        )
        return self.with_diagonals(inside, outside)

    def rescaled(self, scale: float) -> Filter:
        """Return the filter whose ``backward`` takes ``1 / scale`` times what is asked."""
        return replace(self, through=self.through / scale, gain=self.gain * scale)

    @property
    def diagonals(self) -> tuple[Tensor | None, Tensor | None]:
        """``D`` and ``E``."""
        return self.inside, self.outside

    def with_diagonals(self, inside: Tensor | None, outside: Tensor | None) -> Filter:
        """Return the filter for other elements, by their ``D`` and ``E``."""
        if inside is None and outside is None:
            return self
        return replace(self, inside=inside, outside=outside)

    @property
    def numbers(self) -> tuple[float, ...]:
        """All but the diagonals."""
        buffer = (self.through, self.keep, self.gain)
        return (self.direct, *buffer, self.coupled, self.decoupled)

    @property
    def immediate(self) -> float:
        """What a step's own ``u`` moves at once, but for ``inside`` and ``outside``."""
        return self.direct + self.through * self.gain


def _sum(a: float, x: Tensor | None, b: float, y: Tensor | None, place: Place) -> Tensor | None:
    if x is None or a == 0:
        return None if y is None or b == 0 else torch.mul(y, b, out=place())
    if y is None or b == 0:
        return torch.mul(x, a, out=place())
    if b == 1:
        return torch.add(y, x, alpha=a, out=place())
    return torch.mul(x, a, out=place()).add_(y, alpha=b)
