r"""Adjoint of one parameter's momentum buffer, for m test examples.

    adjoint = scale whole + Σ_k factor_k δ_k a_kᵀ

Outer products wait until several of them are added by one matrix product: a pass over ``whole`` is
a large part of the walk. Meanwhile their products with gradients need their factors only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.chunks import WAITING
from replay.gradients.forms.form import Form
from replay.gradients.forms.outer_products import OuterProducts

_FADED = 1e-3  # a smaller scale is multiplied out


class BufferAdjoint:
    """One vector a test example, ``(m, numel)``, changed in place.

    Attributes:
        whole: See the module.
        scale: Likewise.
    """

    def __init__(self, whole: Tensor) -> None:
        self.whole, self.scale = whole, 1.0
        self._waiting: list[tuple[float, OuterProducts]] = []

    def state(self) -> dict[str, Any]:
        """Return all that it is, as tensors and numbers."""
        waiting = [(factor, outer.deltas, outer.inputs) for factor, outer in self._waiting]
        return {"whole": self.whole, "scale": self.scale, "waiting": waiting}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> BufferAdjoint:
        """Return what ``state`` was of."""
        found = cls(state["whole"])
        found.scale = state["scale"]
        found._waiting = [
            (factor, OuterProducts(inputs, deltas, 0, deltas.shape[2]))
            for factor, deltas, inputs in state["waiting"]
        ]
        return found

    def fade(self, keep: float | Tensor) -> None:
        """Multiply by a number, or each element by its own, where nothing waits."""
        if isinstance(keep, Tensor):
            assert not self._waiting
            self.whole.mul_(keep.flatten().to(self.whole))
            return
        self.scale *= keep
        self._waiting = [(factor * keep, outer) for factor, outer in self._waiting]

    def add(self, outers: Sequence[OuterProducts], factor: float) -> None:
        """Add outer products, times a factor."""
        self._waiting += [(factor, outer) for outer in outers]

    def can_wait(self, forms: Sequence[Form]) -> bool:
        """Return whether products with gradients cost less if nothing is added to ``whole``."""
        p, d = self._waiting[0][1].shape if self._waiting else (0, 0)
        n = sum(form.count for form in forms)
        few = len(self._waiting) < WAITING and n * (p + d) < 4 * p * d
        return few and all(form.factors for form in forms) and abs(self.scale) > _FADED

    def waiting(self, form: Form) -> Tensor:
        """Return products of what waits with n gradients, float64 ``(n, m)``."""
        found = [factor * form.inner(outer) for factor, outer in self._waiting]
        return torch.stack(found).sum(0)

    def blocks(self, *, whole: bool) -> Callable[[slice], Tensor]:
        """Return what gives some rows times ``1 / scale``, each to be asked for once.

        Args:
            whole: Add what waits.
        """
        if not whole or not (self._waiting or abs(self.scale) < _FADED):
            return lambda rows: self.whole[rows]
        (scale, self.scale), (waiting, self._waiting) = (self.scale, 1.0), (self._waiting, [])
        if not waiting:
            return lambda rows: self.whole[rows].mul_(scale)
        deltas = torch.cat([factor * outer.deltas for factor, outer in waiting], 1).mT  # (m, p, k)
        inputs = torch.cat([outer.inputs for _, outer in waiting], 1)

        def added(rows: slice) -> Tensor:
            block = self.whole[rows]
            matrices = block.view(len(block), deltas.shape[1], inputs.shape[2])
            matrices.baddbmm_(deltas[rows], inputs[rows], beta=scale)
            return block

        return added
