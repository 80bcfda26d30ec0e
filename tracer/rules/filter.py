r"""One step of an optimizer as a linear map of the effective gradient.

With its non-linear factors (Adam's denominator) taken as they were in the run, a step of a
parameter is linear in ``u``, the signed and clipped gradient plus coupled decay:

    b' = keep b + gain D u,      w − w' = E (direct D u + through b') + decoupled w,

``b`` the momentum buffer, ``D`` (``pre``) and ``E`` (``post``) diagonal; or ``E`` multiplies by
matrices from the sides, before a diagonal, after it or both: ``E x = outer (post ∘ (inner x))``.
``keep`` is 1 where the step leaves the buffer as it is (``still``), and there is a factor for each
element beside it where the buffer was rounded when it was put away (``rounded``). ``forward``
splits steps. ``backward``, its transpose, carries gradients of later steps to earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tracer.rules.sides import Sides

Place = Callable[[], Tensor | None]


def _new() -> None:
    """Leave it to torch to take memory."""


@dataclass(frozen=True)
class Filter:
    """One step of one parameter as a linear map; see the module.

    Attributes:
        direct: Weight of ``u`` in the move.
        through: Weight of the buffer after the step.
        keep: Share of the buffer that stays.
        gain: Weight with which ``u`` enters it.
        pre: ``D``, in the parameter's shape; None is 1.
        post: ``E``, likewise.
        decoupled: Weight decay that is no part of ``u`` (AdamW).
        behind: Weight decay that is added to ``D u``.
        inner: Matrices of ``E`` that multiply before ``post``.
        outer: Likewise after it.
        beyond: What the step moved besides, which is linear in nothing: the run's own rounding.
        still: 1 for each element whose buffer the step leaves as it is, 0 for the others; float64.
        rounded: What each element of the buffer is multiplied by before the step; float64.

    >>> step = Filter(through=0.1, keep=0.5, gain=1.0)
    >>> step.forward(torch.tensor(4.0), torch.tensor(2.0))  # b' = 0.5 · 2 + 4, then 0.1 b'
    (tensor(0.5000), tensor(5.))
    """

    direct: float = 0.0
    through: float = 0.0
    keep: float = 1.0
    gain: float = 0.0
    pre: Tensor | None = None
    post: Tensor | None = None
    decoupled: float = 0.0
    inner: Sides | None = None
    outer: Sides | None = None
    beyond: Tensor | None = None
    behind: float = 0.0
    still: Tensor | None = None
    rounded: Tensor | None = None

    def forward(
        self,
        u: Tensor | None,
        b: Tensor | None,
        move: Place = _new,
        buffer: Place = _new,
        w: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the move ``w - w'`` (without ``decoupled``) and ``b'``; None is zero.

        Args:
            u: The effective gradient.
            b: The buffer before the step.
            move: Gives the tensor in which the move is to be, or None; called if it is not zero.
            buffer: Likewise for ``b'``.
            w: What decay ``behind`` ``D`` is taken of; None is zero.
        """
        u = u if u is None or self.pre is None else u * self.pre
        if self.behind and w is not None:
            u = w * self.behind if u is None else u.add(w, alpha=self.behind)
        kept = self.kept
        if b is not None and isinstance(kept, Tensor):
            b = _sum(1.0, b * kept, self.gain, u, buffer)
        else:
            b = _sum(self.keep, b, self.gain, u, buffer)
        moved = _sum(self.direct, u, self.through, b, move)
        if moved is None or self.is_matrix:
            return None if moved is None else self.turned(moved), b
        return moved if self.post is None else moved.mul_(self.post), b

    @property
    def kept(self) -> Tensor | float:
        """Share of the buffer that stays, of each element where they differ."""
        share = self.keep if self.still is None else self.still * (1 - self.keep) + self.keep
        return share if self.rounded is None else self.rounded * share

    @property
    def is_matrix(self) -> bool:
        """Whether ``E`` mixes elements."""
        return self.inner is not None or self.outer is not None

    def turned(self, x: Tensor) -> Tensor:
        """Return ``E`` times a vector, or each of n ones ``(n, numel)``, if it is a matrix."""
        return _turned(x, self.inner, self.post, self.outer)

    @property
    def turns_factors(self) -> bool:
        """Whether ``Eᵀ`` of an outer product is one: it is no more than a matrix."""
        return self.outer is not None and self.inner is None and self.post is None

    @property
    def adds_plainly(self) -> bool:
        """Whether ``backward`` needs nothing of ``q`` but ``through * q`` in ``adjoint``."""
        plain = not self.direct and self.post is None and not self.is_matrix
        return bool(self.through) and plain

    def backward(self, q: Tensor | None, adjoint: Tensor | None) -> tuple[Tensor, float]:
        """Return ``λ``, the gradient of this step's and all later moves with respect to ``u``.

        Afterwards the adjoint of the buffer before this step is ``kept * adjoint``.

        Args:
            q: Gradients at this step, ``(m, ...)``; None only where ``adds_plainly`` and the
                caller has added them to ``adjoint``.
            adjoint: That of the buffer after the step, by later steps, likewise; ``q``'s part is
                added in place. None is zero, and possible only where ``through`` is 0.

        Returns:
            A tensor, which may be ``adjoint`` itself, and a number; ``λ`` is their product.
        """
        post = self.post
        if q is not None and self.is_matrix:
            back = [None if side is None else side.transposed for side in (self.outer, self.inner)]
            q, post = _turned(q, back[0], post, back[1]), None
        ahead: Tensor | None = None
        if adjoint is not None and self.direct and self.gain:  # gain (m + direct / gain E q)
            assert q is not None
            ahead = _plus(adjoint, q, post, self.through + self.direct / self.gain, None)
        if adjoint is not None and self.through and q is not None:
            _plus(adjoint, q, post, self.through, adjoint)
        if ahead is not None:
            return (ahead if self.pre is None else ahead.mul_(self.pre)), self.gain
        if adjoint is not None and not self.direct:
            return (adjoint, self.gain) if self.pre is None else (adjoint * self.pre, self.gain)
        assert q is not None
        result = q * self.direct if post is None else q * post * self.direct
        return (result if self.pre is None else result.mul_(self.pre)), 1.0

    def without_matrix(self) -> Filter:
        """Return the filter for gradients that were turned back."""
        return replace(self, inner=None, outer=None, beyond=None) if self.is_matrix else self

    def flat(self, dtype: torch.dtype) -> Filter:
        """Return the filter for flattened vectors of a dtype."""
        diagonals = [None if d is None else d.flatten().to(dtype) for d in self.diagonals]
        inner, outer = (None if d is None else d.to(dtype) for d in (self.inner, self.outer))
        return replace(self.with_diagonals(*diagonals), inner=inner, outer=outer, beyond=None)

    def rescaled(self, scale: float) -> Filter:
        """Return the filter whose ``backward`` takes ``1 / scale`` times the adjoint."""
        return replace(self, through=self.through / scale, gain=self.gain * scale)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        held = [x for x in (*self.diagonals, self.beyond) if x is not None]
        return held + [x for side in (self.inner, self.outer) if side for x in side.tensors]

    @property
    def diagonals(self) -> tuple[Tensor | None, ...]:
        """All that has a number for each element: ``D``, ``E``, ``still`` and ``rounded``."""
        return self.pre, self.post, self.still, self.rounded

    def with_diagonals(
        self,
        pre: Tensor | None,
        post: Tensor | None,
        still: Tensor | None,
        rounded: Tensor | None,
    ) -> Filter:
        """Return the filter for other elements, by their ``diagonals``."""
        if pre is None and post is None and still is None and rounded is None:
            return self
        return replace(self, pre=pre, post=post, still=still, rounded=rounded)

    @property
    def numbers(self) -> tuple[float, ...]:
        """All but the diagonals."""
        buffer = (self.through, self.keep, self.gain)
        return (self.direct, *buffer, self.decoupled, self.behind)

    @property
    def immediate(self) -> float:
        """Share of a step's own ``u`` in its move, without ``pre`` and ``post``."""
        return self.direct + self.through * self.gain


def _plus(x: Tensor, y: Tensor, diagonal: Tensor | None, a: float, out: Tensor | None) -> Tensor:
    """Return ``x`` plus ``a`` times ``y``, times a diagonal."""
    if diagonal is None:
        return torch.add(x, y, alpha=a, out=out)
    return torch.addcmul(x, y, diagonal, value=a, out=out)


def _turned(x: Tensor, first: Sides | None, post: Tensor | None, last: Sides | None) -> Tensor:
    """Return vectors times matrices, a diagonal and matrices."""
    x = x if first is None else first.times(x)
    x = x if post is None else (x.reshape(-1, post.numel()) * post.flatten()).reshape(x.shape)
    return x if last is None else last.times(x)


def _sum(a: float, x: Tensor | None, b: float, y: Tensor | None, place: Place) -> Tensor | None:
    if x is None or a == 0:
        return None if y is None or b == 0 else torch.mul(y, b, out=place())
    if y is None or b == 0:
        return torch.mul(x, a, out=place())
    if b == 1:
        return torch.add(y, x, alpha=a, out=place())
    return torch.mul(x, a, out=place()).add_(y, alpha=b)
