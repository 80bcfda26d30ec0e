"""A second backward pass, for several cotangents at once where torch can."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.vectors.workspace import room

_LARGE = 1 << 22  # elements that it may have at once; taking more together saves no time

Vectors = dict[str, Tensor]  # by name, (m, numel)


@dataclass
class SecondPass:
    """Values of a forward pass, or of the penalty, whose graph can be differentiated again.

    Attributes:
        outputs: By name: gradients of parameters, and buffers afterwards.
        inputs: By name: parameters, and buffers before.
        each: Elements that the graph holds, about.
        failed: Called with torch's error where a layer cannot be differentiated twice; raises.
        together: Whether several cotangents can be taken at once.
    """

    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]
    each: int
    failed: Callable[[RuntimeError], None]
    together: bool

    def backward(self, cotangents: Vectors) -> Vectors:
        """Return cotangents of the inputs; absent ones are zero.

        Args:
            cotangents: Of the outputs; absent ones are zero.
        """
        outputs = {n: y for n, y in self.outputs.items() if n in cotangents and y.requires_grad}
        if not outputs:
            return {}
        shaped = {n: cotangents[n].view(-1, *y.shape).to(y) for n, y in outputs.items()}
        m = len(next(iter(shaped.values())))
        size = max(1, room(_LARGE) // max(1, self.each)) if self.together else 1
        blocks = [
            self._some(outputs, {n: c[start : start + size] for n, c in shaped.items()})
            for start in range(0, m, size)
        ]
        dtype = next(iter(cotangents.values())).dtype
        return {n: torch.cat([b[n] for b in blocks]).flatten(1).to(dtype) for n in blocks[0]}

    def _some(self, outputs: dict[str, Tensor], some: Vectors) -> Vectors:
        """Return the parts of some cotangents: in one backward pass, if torch can."""
        values, known = list(outputs.values()), list(some.values())
        if self.together and len(known[0]) > 1:
            try:
                return self._grad(values, known, batched=True)
            except RuntimeError:  # an operation has no rule for it; maybe none for a second pass
                self.together = False
        try:
            rows = [self._grad(values, list(one)) for one in zip(*known, strict=True)]
        except RuntimeError as error:
            self.failed(error)
            raise
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _grad(
        self, outputs: list[Tensor], cotangents: list[Tensor], *, batched: bool = False
    ) -> Vectors:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            found = torch.autograd.grad(
                outputs,
                list(self.inputs.values()),
                cotangents,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        return {name: g for name, g in zip(self.inputs, found, strict=True) if g is not None}
