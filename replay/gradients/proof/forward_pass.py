"""One forward pass that was run, and what backward passes over its graph give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from replay.gradients.forms.form import Form, for_products
from replay.gradients.operations.graph import Graph, walk
from replay.gradients.operations.views import Node
from replay.gradients.proof.layout import Layout
from replay.gradients.readers.reader import Reader
from replay.gradients.readers.table import candidates


@dataclass(frozen=True)
class Choice:
    """How one arrival of a parameter is read: the number of its reader, and the layout."""

    number: int
    layout: Layout


Plan = dict[str, list[Choice]]  # by covered parameter, one for each arrival


@dataclass(frozen=True)
class Pass:
    """Losses with their graph.

    Attributes:
        losses: ``ℓ``, ``(n,)``.
        weights: ``c``, ``(n,)``.
        parameters: Those that the losses depend on, by name.
        graph: What was walked.
    """

    losses: Tensor
    weights: Tensor
    parameters: dict[str, Tensor]
    graph: Graph

    def candidates(self, name: str) -> list[list[Reader]]:
        """Return readers of each arrival of a parameter; only before the graph is freed."""
        shape = tuple(self.parameters[name].shape)
        return [candidates(arrival, self.graph, shape) for arrival in self.graph.arrivals[name]]

    def backward(
        self, names: Sequence[str], nodes: Sequence[Node], weights: Tensor, *, retain: bool
    ) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        """Return gradients of ``Σ weights_i ℓ_i`` of parameters and of nodes' results.

        One that is not reached is absent.
        """
        edges = [GradientEdge(node, 0) for node in nodes]
        targets = [*(self.parameters[name] for name in names), *edges]
        if not targets:
            return {}, {}
        with torch.enable_grad():  # for grad_outputs torch imports 40 MB of symbolic shapes
            total = self.losses @ weights
        found = torch.autograd.grad(
            total,
            targets,  # type: ignore[arg-type]  # torch takes a mixture
            retain_graph=retain,
            allow_unused=True,
        )
        of_names = zip(names, found[: len(names)], strict=True)
        of_nodes = zip(nodes, found[len(names) :], strict=True)
        return (
            {name: g for name, g in of_names if g is not None},
            {node: g for node, g in of_nodes if g is not None},
        )

    def watch(
        self, nodes: Sequence[Node], weights: Tensor, seen: Callable[[Node, Tensor], None]
    ) -> None:
        """Show the same gradients of nodes' results one at a time; the graph is kept."""
        missing = dict.fromkeys(nodes)

        def show(node: Node, gradients: Sequence[Tensor | None]) -> None:
            missing.pop(node, None)
            if gradients[0] is not None:
                seen(node, gradients[0])

        hooks = [node.register_prehook(partial(show, node)) for node in nodes]
        try:  # a node is run if there is another one to be reached below it
            _, last = self.backward((), self.graph.lowest(nodes), weights, retain=True)
        finally:
            for hook in hooks:
                hook.remove()
        for node in missing.keys() & last.keys():
            seen(node, last[node])

    def own(self, i: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the gradient of ``c_i ℓ_i`` by a backward of its own; the graph is kept."""
        targets = [self.parameters[name] for name in names]
        return dict(zip(names, gradient(self.losses[i] * self.weights[i], targets), strict=True))


def run(
    parameters: dict[str, Tensor], forward: Callable[[], Tensor], weights: Tensor | None
) -> Pass:
    """Run a forward pass; ``weights`` None is 1 each."""
    with torch.enable_grad():
        losses = forward()
    weights = torch.ones_like(losses) if weights is None else weights.to(losses)
    graph = walk(losses, {id(p): name for name, p in parameters.items()})
    reached = {name: p for name, p in parameters.items() if name in graph.arrivals}
    return Pass(losses, weights, reached, graph)


def form_of(reader: Reader, layout: Layout, delta: Tensor, n: int) -> Form:
    """Read an output gradient."""
    delta = delta.detach()
    delta = delta if reader.shape is None else delta.view(reader.shape)
    with torch.no_grad():
        return reader.read(delta, lambda tensor, leading: layout.arrange(tensor, leading, n))


def gradient(loss: Tensor, targets: list[Tensor], *, retain: bool = True) -> list[Tensor]:
    """Return the flat gradient of each target by one backward."""
    found = torch.autograd.grad(loss, targets, retain_graph=retain, allow_unused=True)
    return [
        for_products((torch.zeros_like(target) if g is None else _dense(g)).flatten())
        for g, target in zip(found, targets, strict=True)
    ]


def _dense(one: Tensor) -> Tensor:
    return one if one.layout == torch.strided else one.to_dense()
