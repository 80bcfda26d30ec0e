r"""The complete way: one backward for each ``ℓ_i``, over the graph of the pass that was run.

It is right for whatever a forward does, if backward passes are linear and do not disturb each
other. Nobody promises that of functions and hooks of somebody's own, so the sum of all is compared
with the plain gradient. Where they differ, each example gets a forward pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients.forms.form import is_finite
from replay.gradients.forms.per_example import Blocks
from replay.gradients.proof.agreement import SHARE, allowed, coarsest, dense, repeats, size_of_parts
from replay.gradients.proof.forward_pass import Pass, SpentGraph
from replay.gradients.proof.layout import deviation
from tracer.errors import GradientError


@dataclass(frozen=True)
class Complete:
    """Gradients of some parameters by the complete way.

    Attributes:
        found: The pass.
        names: The parameters.
        total: Plain gradients of all.
        size: Examples in a block.
    """

    found: Pass
    names: Sequence[str]
    total: dict[str, Tensor]
    size: int

    def blocks(self) -> Blocks:
        """Yield all gradients, ``(examples, numel)`` by parameter, block by block.

        Raises:
            SpentGraph: The only block does not add up, which a forward pass for each may mend.
            GradientError: Neither does it then; or several blocks do not.
        """
        sums = {n: torch.zeros_like(dense(self.total[n])).flatten() for n in self.names}
        norms: dict[str, list[Tensor]] = {name: [] for name in self.names}
        count = len(self.found.losses)
        for start in range(0, count, self.size):
            rows = slice(start, min(start + self.size, count))
            own = [self.found.own(i, self.names) for i in range(rows.start, rows.stop)]
            block = {name: torch.stack([one[name] for one in own]) for name in self.names}
            for name, found in block.items():
                sums[name] = sums[name] + found.sum(0)
                norms[name].append(torch.linalg.vector_norm(found, dim=1))
            yield rows, block
        self._require(sums, {name: torch.cat(found) for name, found in norms.items()})

    def _repeats(self, names: Sequence[str]) -> bool:
        return self.found.once or repeats(self.found, self.total, list(names))

    def _require(self, sums: dict[str, Tensor], norms: dict[str, Tensor]) -> None:
        """Compare sums with plain gradients; what is not finite is told elsewhere."""
        rounding, gaps, sizes = coarsest(self.found), {}, {}
        for name in filter(lambda name: is_finite(self.total[name]), self.names):
            tolerance = max(rounding, allowed(self.found.parameters[name], ()))
            whole = dense(self.total[name]).flatten()
            gaps[name] = float(deviation(sums[name], whole).norm())
            sizes[name] = tolerance * (size_of_parts(norms[name], tolerance) + float(whole.norm()))
        off = [name for name, gap in gaps.items() if not gap <= sizes[name]]
        rest = [float(g.norm()) for name, g in self.total.items() if name not in sizes]
        least = SHARE * math.hypot(*sizes.values(), *(rounding * size for size in rest))
        if not off or (all(gaps[name] <= least for name in off) and self._repeats(off)):
            return  # what differs is rounding, of a gradient of nothing else
        if not self.found.once and self.size >= len(self.found.losses):
            raise SpentGraph(self.found.where)
        raise GradientError(
            f"{self.found.where}: gradients of the examples do not add up to the batch's gradient "
            f"of {off[0]!r}, each by a pass of its own. What runs backwards there is no derivative "
            "of the loss: a hook or a function of your own that clips, rounds or draws at random. "
            "1. Take it out of task.model(), and train without it; clip with "
            "torch.nn.utils.clip_grad_norm_, which is logged. "
            '2. Or ask for methods=("tracincp",), which takes no sums.'
        )
