"""One step as a chunk of test examples sees it: gradients and values along ``w_t − uΔ_t``.

A gradient ``q`` along the step is mostly needed through its products with what the step was made
of, so that is what a ``Node`` keeps: averages of gradients are averages of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from replay.evaluate.run_examples import RunExamples
from replay.evaluate.test_side import Examples
from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms import products
from replay.gradients.forms.per_example import PerExample
from replay.path.test_means import WeightedGradients
from replay.steps.displacement import Vector
from replay.steps.replayed_step import ReplayedStep


@dataclass(frozen=True)
class Node:
    """Products of one gradient (or average) per test example with the parts of a step.

    Attributes:
        shares: ``Σ_G ±κ η_G c_i ⟨q_j, g_i⟩_G`` for each occurrence i, float64 ``(b, m)``: under
            plain SGD what it is credited with, else a measure of how the split changes.
        parts: ``⟨q_j, data⟩``, ``⟨q_j, regulariser⟩``, ``⟨q_j, history⟩``, ``⟨q_j, rounding⟩``,
            float64 ``(4, m)``; a fifth where only some parameters are looked at: the others'.
            NaN until they are found together with credits (``StepPath.later``).
        norms: ``‖q_j‖`` over the parameters that the step moved (of an average: the average
            of the norms), float64 ``(m,)``; NaN where only ``tracin`` looks.
        weights: By u, the weight of the gradient there in the average, ``(m,)`` each.
    """

    shares: Tensor
    parts: Tensor
    norms: Tensor
    weights: dict[float, Tensor]

    @property
    def slope(self) -> Tensor:
        """``⟨q_j, Δ_t⟩``, ``(m,)``."""
        return self.parts.sum(0)


@dataclass
class StepPath:
    """A step as a chunk of m test examples sees it; what is computed along it is kept.

    Attributes:
        replayed: The step, with what moved it.
        trained: Gradients of its examples.
        examples: The test examples.
        run: The same, at several points in one pass.
        ends: Gradients at ``u = 0`` and, where it is needed, at ``u = 1`` (buffers ``β_t``).
        values: ``φ`` at ``u = 0`` and at ``u = 1`` with ``β_t``, float64 ``(m,)`` each.
        names: Parameters that ``parts`` are about, the others being a part of their own; None
            is all.
        keeps: Whether gradients along the step are kept for ``mean``.
        compares: Whether nodes are compared with each other, by their products and norms.
    """

    replayed: ReplayedStep
    trained: TrainedStep
    examples: Examples
    run: RunExamples
    ends: Sequence[PerExample]
    values: tuple[Tensor, Tensor]
    names: frozenset[str] | None
    keeps: bool
    compares: bool
    _gradients: list[tuple[float, WeightedGradients]] = field(init=False, default_factory=list)
    _end_nodes: dict[int, Node] = field(init=False, default_factory=dict)

    @property
    def later(self) -> bool:
        """Whether shares and parts are left to whoever forms the gradients for credits."""
        return self.keeps and not self.compares

    @property
    def parts(self) -> list[Vector]:
        """The parts of the step, as in ``Node.parts``."""
        return self.replayed.parts.of(self.names)

    def step_norm(self) -> float:
        """Return ``‖Δ_t‖``."""
        return self.replayed.parts.norm()

    def end(self, u: int) -> Node:
        """Return the node at ``u`` = 0 or 1, for every test example.

        Methods share it: it is not to be changed.
        """
        if u not in self._end_nodes:
            columns = list(range(len(self.examples)))
            self._end_nodes[u] = self._node(float(u), self.ends[u], columns)
        return self._end_nodes[u]

    def meet_end(self, u: int, shares: Tensor, parts: Tensor, norms: Tensor) -> None:
        """Take over what is known of ``end``."""
        columns = list(range(len(self.examples)))
        self.keep(float(u), self.ends[u], columns)
        one = torch.ones(len(columns), dtype=torch.float64, device="cpu")
        self._end_nodes[u] = Node(shares, parts, norms, {float(u): one})

    def round(self, u: float, columns: list[int]) -> tuple[Node, Tensor]:
        """Return the node and ``φ`` at any ``u`` for some test examples, in ascending order."""
        now = self.replayed.transition
        along = now.along(u)  # buffers as in the step
        node = self._node(u, self.examples.gradients(along, now.name, columns), columns)
        return node, self.examples.values(along, now.name, columns)

    def keep(self, u: float, test: PerExample, columns: list[int]) -> None:
        """Keep gradients at ``u`` of some test examples, if they are needed for ``mean``."""
        if self.keeps:
            kept = WeightedGradients(test, torch.tensor(columns, device="cpu"))
            self._gradients.append((u, kept))

    def mean(self, node: Node) -> list[WeightedGradients]:
        """Return the gradients that a node averages, with their weights; needs ``keeps``."""
        found = []
        for u, kept in self._gradients:
            if u not in node.weights:
                continue
            chosen = node.weights[u][kept.columns]
            one = bool((chosen == 1).all())
            found.append(WeightedGradients(kept.gradients, kept.columns, None if one else chosen))
        return found

    @property
    def scale(self) -> dict[str, float]:
        """``±κ`` times the learning rate of every parameter that moved."""
        rates, factors = self.replayed.transition.step.learning_rates, self.replayed.factors
        return {name: rate * factors[name] for name, rate in rates.items() if name in factors}

    def _node(self, u: float, test: PerExample, columns: list[int]) -> Node:
        self.keep(u, test, columns)
        one = torch.ones(len(columns), dtype=torch.float64, device="cpu")
        unknown = one * torch.nan
        shares, parts = unknown.expand(len(self.trained.ids), -1), unknown.expand(4, -1)
        norms = unknown
        if not self.later:
            scale = self.scale
            found = [products.inner(batch, test, scale) for batch in self.trained.batches]
            shares = torch.cat(found).cpu()
            parts = products.project(test, self.parts).cpu()
        if self.compares:
            norms = products.squared_norms(test, set(self.replayed.filters)).sqrt().cpu()
        return Node(shares, parts, norms, {u: one})


@dataclass(frozen=True)
class Split:
    """A step's drop divided among its occurrences, for each test example.

    Attributes:
        node: The average gradient that divides it.
        split_error: How far the split may be off by its mean, relative to its norm; NaN where
            that was not looked at, ``(m,)``.
        theta_inside: Whether the split meets the measured drop, ``(m,)``.
        gradients: Gradients along the step that were used, ``(m,)``.
    """

    node: Node
    split_error: Tensor
    theta_inside: Tensor
    gradients: Tensor

    def with_parts(self, parts: Tensor) -> Split:
        """Return the same with products that were found later."""
        return replace(self, node=replace(self.node, parts=parts))
