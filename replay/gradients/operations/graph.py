r"""Where in the autograd graph of the losses each parameter is used.

A parameter is *covered* when every path from the losses to it goes through operations that
``readers`` know. The graph is walked at every pass, so that nothing which a forward does by hand,
or does only sometimes, is overlooked; its shape is the ``signature``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from replay.gradients.operations.table import recorded
from replay.gradients.operations.views import CASTS, VIEWS, Node
from tracer.errors import GradientError

_REENTRANT = (
    "the model uses torch.utils.checkpoint with use_reentrant=True, which hides its "
    "parameters from torch.autograd.grad; give it use_reentrant=False."
)


@dataclass(frozen=True)
class Arrival:
    """One path from a parameter to an operation that uses it.

    Attributes:
        name: The parameter.
        chain: The views and casts on the way, from the parameter on, each with the number of
            the output that is taken.
        node: The operation.
        slot: Which of its inputs.
    """

    name: str
    chain: tuple[tuple[Node, int], ...]
    node: Node
    slot: int

    @property
    def as_it_is(self) -> bool:
        """Whether no view lies on the way, but casts at most."""
        return all(view.name() in CASTS for view, _ in self.chain)


@dataclass(frozen=True)
class Graph:
    """What is found below the losses.

    Attributes:
        arrivals: By parameter, every operation that uses it.
        users: By node, the nodes that use its result, with slot and output number.
        signature: Names of all nodes, how they are joined, the shapes of their results with
            multiples of n as such, and what is recorded of them: all that ``steady`` goes by.
        root: The node of the losses, and which of its results they are.
        numbers: Of all nodes, in the order of the walk.
    """

    arrivals: dict[str, list[Arrival]]
    users: dict[Node, list[tuple[Node, int, int]]]
    signature: tuple[Any, ...]
    root: tuple[Node, int]
    numbers: dict[Node, int]

    def counterpart(self, node: Node, other: Graph) -> Node:
        """Return the node that is here what a node is in another graph of the same signature."""
        return node if other is self else self._nodes[other.numbers[node]]

    @cached_property
    def _nodes(self) -> list[Node]:
        return list(self.numbers)

    def ordered(self) -> Iterator[Node]:
        """Yield all nodes, each after those that use it."""
        left = {node: len(users) for node, users in self.users.items()}
        waiting = [self.root[0]]
        while waiting:
            node = waiting.pop()
            yield node
            for child, _ in node.next_functions:
                if child is not None:
                    left[child] -= 1
                    if not left[child]:
                        waiting.append(child)

    def lowest(self, nodes: Sequence[Node]) -> list[Node]:
        """Return those from which no other one is reached."""
        above: set[Node] = set()
        waiting = list(nodes)
        while waiting:
            users = {user for user, _, _ in self.users.get(waiting.pop(), ())} - above
            above |= users
            waiting += users
        return [node for node in nodes if node not in above]


def walk(losses: Tensor, names: dict[int, str]) -> Graph:
    """Walk the graph below the losses.

    Args:
        losses: ``(n,)``.
        names: Name of each parameter of interest, by ``id``.

    Raises:
        GradientError: A node hides the parameters below it.
    """
    numbers: dict[Node, int] = {}
    users: dict[Node, list[tuple[Node, int, int]]] = {}
    leaves: dict[Node, str] = {}
    signature: list[Any] = []
    root: Node = losses.grad_fn
    if root is None:
        return Graph({}, {}, (), (None, 0), {})
    waiting, numbers[root] = [root], 0
    n = len(losses)
    while waiting:
        node = waiting.pop()
        name = node.name()
        if name == "CheckpointFunctionBackward":
            raise GradientError(_REENTRANT)
        children = []
        for slot, (child, output) in enumerate(node.next_functions):
            if child is None:
                continue
            if child not in numbers:
                numbers[child] = len(numbers)
                waiting.append(child)
                variable = getattr(child, "variable", None)
                if variable is not None and id(variable) in names:
                    leaves[child] = names[id(variable)]
            users.setdefault(child, []).append((node, slot, output))
            children += [slot, numbers[child], output]
        shapes = [_relative(tuple(meta.shape), n) for meta in node._input_metadata]
        values = recorded(node, name, n)
        signature.append((name, leaves.get(node), *children, *shapes, values))
    arrivals: dict[str, list[Arrival]] = {}
    for leaf, parameter in leaves.items():
        _follow(parameter, (), leaf, users, arrivals.setdefault(parameter, []))
    whole = (losses.output_nr, *signature)
    return Graph(arrivals, users, whole, (root, losses.output_nr), numbers)


@lru_cache(1 << 16)
def _relative(shape: tuple[int, ...], n: int) -> tuple[Any, ...]:
    # sizes of jagged tensors are symbols
    known = [size if isinstance(size, int) else None for size in shape]
    return tuple(
        (size // n,) if n and size is not None and size % n == 0 else size for size in known
    )


def _follow(
    name: str,
    chain: tuple[tuple[Node, int], ...],
    node: Node,
    users: dict[Node, list[tuple[Node, int, int]]],
    found: list[Arrival],
) -> None:
    for user, slot, output in users[node]:
        longer = (*chain[:-1], (chain[-1][0], output)) if chain else ()
        if user.name() in VIEWS:
            _follow(name, (*longer, (user, 0)), user, users, found)
        else:
            found.append(Arrival(name, longer, user, slot))
