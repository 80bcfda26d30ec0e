"""One forward pass that was run, and what backward passes over its graph give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from replay.gradients.forms.form import Form, for_products
from replay.gradients.forms.sum import added
from replay.gradients.operations.graph import Graph, walk
from replay.gradients.operations.views import Node
from replay.gradients.proof.layout import Layout, tolerance_of
from replay.gradients.readers.reader import Reader
from replay.gradients.readers.table import candidates
from tracer.errors import GradientError


@dataclass(frozen=True)
class Choice:
    """How one arrival of a parameter is read.

    Attributes:
        number: Of its reader.
        layout: Of the examples.
        shown: Whether there was anything to see: zeros prove nothing.
    """

    number: int
    layout: Layout
    shown: bool = field(compare=False)


# by covered parameter, one for each arrival
Plan = dict[str, list[Choice]]
Chosen = dict[str, list[tuple[Reader, Choice]]]


class SpentGraph(GradientError):
    """A backward pass over a graph that one went over before is refused, or gives another thing.

    Where it is found in time, each backward pass gets a forward pass of its own.
    """

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}: a second backward pass over the graph of one forward pass gave another "
            "gradient, or was refused. 1. Prove every pass: audit=1 (--audit 1). 2. Give it more "
            "memory (--memory), so that gradients are taken once."
        )


@dataclass(frozen=True)
class Pass:
    """Losses with their graph.

    Attributes:
        losses: ``ℓ``, ``(n,)``.
        weights: ``c``, ``(n,)``.
        parameters: Those that the losses depend on, by name.
        graph: What was walked.
        rerun: Runs the same forward pass again.
        where: For messages.
        once: Whether a graph works for one backward pass only, so that each has one of its own.
        looked_up: Readers of such a graph, by parameter: what was saved may be looked at once only.
    """

    losses: Tensor
    weights: Tensor
    parameters: dict[str, Tensor]
    graph: Graph
    rerun: Callable[[], Pass]
    where: str
    once: bool = False
    looked_up: dict[str, list[list[Reader]]] = field(default_factory=dict)

    def candidates(self, name: str) -> list[list[Reader]]:
        """Return readers of each arrival of a parameter; only before the graph is freed."""
        if name in self.looked_up:
            return self.looked_up[name]
        shape, arrivals = tuple(self.parameters[name].shape), self.graph.arrivals[name]
        try:
            found = [candidates(arrival, self.graph, shape) for arrival in arrivals]
        except Exception as error:
            if not self.once:
                raise SpentGraph(self.where) from error
            found = [[] for _ in arrivals]
        if self.once:
            self.looked_up[name] = found
        return found

    def backward(
        self, names: Sequence[str], nodes: Sequence[Node], weights: Tensor, *, retain: bool
    ) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        """Return gradients of ``Σ weights_i ℓ_i`` of parameters and of nodes' results.

        One that is not reached is absent.
        """
        found: dict[Node, Tensor] = {}
        return self.watch(names, nodes, weights, found.__setitem__, retain=retain), found

    def watch(
        self,
        names: Sequence[str],
        nodes: Sequence[Node],
        weights: Tensor,
        seen: Callable[[Node, Tensor], None],
        *,
        retain: bool,
    ) -> dict[str, Tensor]:
        """Return the same gradients of parameters; show those of nodes' results one at a time.

        Nodes are asked what they are given: of a result with a hook on it ``torch.autograd.grad``
        returns what the hook was given, if something below is wanted, too.
        """
        there = self.anew() if self.once else self
        missing = {there.graph.counterpart(node, self.graph): node for node in nodes}

        def show(node: Node, gradients: Sequence[Tensor | None]) -> None:
            here = missing.pop(node, None)
            if here is not None and gradients[0] is not None:
                seen(here, gradients[0])

        hooks = [node.register_prehook(partial(show, node)) for node in missing]
        # a node is run if there is something to be reached below it
        lowest = [] if names else there.graph.lowest(list(missing))
        try:
            total, last = there.differentiated(names, lowest, weights, retain and not self.once)
        finally:
            for hook in hooks:
                hook.remove()
        for node in missing.keys() & last.keys():
            seen(missing[node], last[node])
        return total

    def differentiated(
        self, names: Sequence[str], nodes: Sequence[Node], weights: Tensor, retain: bool
    ) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        """Do what ``backward`` does, over this very graph, by what autograd returns."""
        edges = [GradientEdge(node, 0) for node in nodes]
        targets = [*(self.parameters[name] for name in names), *edges]
        if not targets:
            return {}, {}
        with torch.enable_grad():  # for grad_outputs torch imports 40 MB of symbolic shapes
            total = self.losses @ weights
        with self._spending():
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

    def own(self, i: int, names: Sequence[str], loud: float = 1.0) -> dict[str, Tensor]:
        """Return the gradient of ``c_i ℓ_i`` by a backward of its own; the graph is kept.

        Args:
            i: The example.
            names: With respect to which parameters.
            loud: A power of 2 by which the gradient is larger on its way.
        """
        there = self.anew() if self.once else self
        targets = [self.parameters[name] for name in names]
        with self._spending():
            loss = there.losses[i] * self.weights[i] * loud
            found = gradient(loss, targets, retain=not self.once)
        return {name: g / loud for name, g in zip(names, found, strict=True)}

    def anew(self) -> Pass:
        """Return the same pass, run again.

        Raises:
            GradientError: It is another one.
        """
        other = self.rerun()
        rounding = tolerance_of(self.losses.dtype)
        same = torch.allclose(other.losses, self.losses, rounding, rounding)
        if not same or other.graph.signature != self.graph.signature:
            raise GradientError(
                f"{self.where}: the forward pass was run again under its random state, since its "
                "graph works for one backward pass only, and gave other "
                f"{'losses' if not same else 'operations'}. 1. Draw with torch's generators only. "
                "2. Keep what a forward remembers in registered buffers."
            )
        return replace(other, once=self.once)

    @contextmanager
    def _spending(self) -> Iterator[None]:
        """Say so where autograd fails, which it may not do over a graph of its own."""
        try:
            yield
        except Exception as error:
            if self.once:
                raise
            raise SpentGraph(self.where) from error


def run(
    parameters: dict[str, Tensor],
    forward: Callable[[], Tensor],
    weights: Tensor | None,
    where: str = "this pass",
    *,
    once: bool = False,
) -> Pass:
    """Run a forward pass; ``weights`` None is 1 each."""
    with torch.enable_grad():
        losses = forward()
    given = torch.ones_like(losses) if weights is None else weights.to(losses)
    graph = walk(losses, {id(p): name for name, p in parameters.items()})
    reached = {name: p for name, p in parameters.items() if name in graph.arrivals}
    rerun = partial(run, parameters, forward, weights, where)
    return Pass(losses, given, reached, graph, rerun, where, once)


def form_of(reader: Reader, layout: Layout, delta: Tensor, n: int) -> Form:
    """Read an output gradient."""
    delta = delta.detach()
    delta = delta if reader.shape is None else delta.view(reader.shape)
    with torch.no_grad():
        return reader.read(delta, lambda tensor, leading: layout.arrange(tensor, leading, n))


def magnitudes(chosen: Sequence[tuple[Reader, Layout, Tensor]], n: int) -> Form:
    """Read magnitudes of output gradients: they add up to how large their own sum may get."""
    return added([form_of(reader, layout, delta.abs(), n) for reader, layout, delta in chosen])


def gradient(loss: Tensor, targets: list[Tensor], *, retain: bool = True) -> list[Tensor]:
    """Return the flat gradient of each target by one backward."""
    found = torch.autograd.grad(loss, targets, retain_graph=retain, allow_unused=True)
    return [
        for_products((torch.zeros_like(target) if g is None else _dense(g)).flatten())
        for g, target in zip(found, targets, strict=True)
    ]


def _dense(one: Tensor) -> Tensor:
    return one if one.layout == torch.strided else one.to_dense()
