"""One step as a chunk of test examples sees it: gradients and values along ``w_t − uΔ_t``.

A gradient ``q`` along the step is only ever needed through its products with what the step was
made of, so that is all a ``Node`` keeps: averages of gradients are averages of nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.displacement import Displacement, Rate
from replay.gradients import products
from replay.gradients.per_example import PerExample
from replay.measured import Examples, between
from replay.trained import TrainedStep
from replay.trajectory import Transition


@dataclass(frozen=True)
class Node:
    """Products of one gradient (or average) per test example with the parts of a step.

    Attributes:
        shares: ``Σ_G η_G c_i ⟨q_j, g_i⟩_G`` for each occurrence i, float64 ``(b, m)``.
        parts: ``⟨q_j, data⟩``, ``⟨q_j, regulariser⟩``, ``⟨q_j, rounding⟩``, float64 ``(3, m)``.
        norms: ``‖q_j‖`` over the parameters that the step moved (of an average: the average
            of the norms), float64 ``(m,)``.
    """

    shares: Tensor
    parts: Tensor
    norms: Tensor

    @property
    def slope(self) -> Tensor:
        """``⟨q_j, Δ_t⟩``, ``(m,)``."""
        return self.parts.sum(0)

    def columns(self, chosen: Tensor) -> Node:
        """Return some test examples' columns."""
        return Node(self.shares[:, chosen], self.parts[:, chosen], self.norms[chosen])


def average(weights: Tensor, nodes: list[Node]) -> Node:
    """Return ``Σ_k weights[k] nodes[k]``; weights are ``(k, m)``, one set per test example."""
    shares = torch.zeros_like(nodes[0].shares)
    parts, norms = torch.zeros_like(nodes[0].parts), torch.zeros_like(nodes[0].norms)
    for weight, node in zip(weights, nodes, strict=True):
        shares += weight * node.shares
        parts += weight * node.parts
        norms += weight * node.norms
    return Node(shares, parts, norms)


@dataclass(frozen=True)
class Line:
    """A step and a chunk of m test examples.

    Attributes:
        transition: The logged step.
        trained: Its training side.
        displacement: Its parts.
        rates: Rate of each parameter that it moved.
        examples: The test examples.
        ends: Gradients at ``u = 0`` and ``u = 1`` (buffers ``β_t``), computed when called.
        values: ``φ`` at ``u = 0`` and at ``u = 1`` with ``β_t``, float64 ``(m,)`` each.
        step_norm: ``‖Δ_t‖``.
    """

    transition: Transition
    trained: TrainedStep
    displacement: Displacement
    rates: dict[str, Rate]
    examples: Examples
    ends: tuple[Callable[[], PerExample], Callable[[], PerExample]]
    values: tuple[Tensor, Tensor]
    step_norm: float

    def end(self, u: int) -> Node:
        """Return the node at ``u`` = 0 or 1, for every test example."""
        return self._node(self.ends[u]())

    def node(self, u: float, columns: list[int]) -> Node:
        """Return the node at any ``u`` for some test examples."""
        transition = self.transition
        state = between(transition.before, transition.after, u)
        return self._node(self.examples.gradients(state, transition.name, columns))

    def value(self, u: float, columns: list[int]) -> Tensor:
        """Return ``φ`` at any ``u`` for some test examples, buffers ``β_t``, float64."""
        transition = self.transition
        state = between(transition.before, transition.after, u)
        return self.examples.values(state, transition.name, columns)

    def _node(self, test: PerExample) -> Node:
        scale = {name: rate.learning_rate for name, rate in self.rates.items()}
        shares = [products.inner(batch, test, scale) for batch in self.trained.batches]
        return Node(
            torch.cat(shares).cpu(),
            products.project(test, self.displacement.parts).cpu(),
            products.squared_norms(test, set(self.rates)).sqrt().cpu(),
        )


@dataclass(frozen=True)
class Split:
    """A step's drop divided among its occurrences, for each test example.

    Attributes:
        node: The average gradient that divides it.
        split_error: Last change of the split under refinement, relative to it; NaN where
            nothing was refined, ``(m,)``.
        theta_inside: Whether the secant rule met the measured drop everywhere, ``(m,)``.
        gradients: Gradients along the step that were used, ``(m,)``.
    """

    node: Node
    split_error: Tensor
    theta_inside: Tensor
    gradients: Tensor
