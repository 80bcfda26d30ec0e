r"""Where in the autograd graph of the losses each parameter is used.

A parameter is *covered* when every path from the losses to it goes through operations that
``uses`` knows. The graph is walked at every pass, so that nothing which a forward does by hand,
or does only sometimes, is overlooked; its shape is the ``signature``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from replay.gradients.operations.dimensions import signed
from replay.gradients.operations.table import recorded
from tracer.errors import GradientError

Node = Any  # torch.autograd.graph.Node, with the fields that torch documents as saved tensors
Adjoint = Callable[[Tensor], Tensor]
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


@dataclass(frozen=True)
class Graph:
    """What is found below the losses.

    Attributes:
        arrivals: By parameter, every operation that uses it.
        users: By node, the nodes that use its result, with slot and output number.
        signature: Names of all nodes, how they are joined, the shapes of their results with
            multiples of n as such, and what is recorded of them: all that ``mixing`` goes by.
        root: The node of the losses, and which of its results they are.
    """

    arrivals: dict[str, list[Arrival]]
    users: dict[Node, list[tuple[Node, int, int]]]
    signature: tuple[Any, ...]
    root: tuple[Node, int]

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
        return Graph({}, {}, (), (None, 0))
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
    return Graph(arrivals, users, (losses.output_nr, *signature), (root, losses.output_nr))


@lru_cache(1 << 16)
def _relative(shape: tuple[int, ...], n: int) -> tuple[Any, ...]:
    return tuple((size // n,) if n and size % n == 0 else size for size in shape)


def _follow(
    name: str,
    chain: tuple[tuple[Node, int], ...],
    node: Node,
    users: dict[Node, list[tuple[Node, int, int]]],
    found: list[Arrival],
) -> None:
    for user, slot, output in users[node]:
        longer = (*chain[:-1], (chain[-1][0], output)) if chain else ()
        if user.name() in _VIEWS:
            _follow(name, (*longer, (user, 0)), user, users, found)
        else:
            found.append(Arrival(name, longer, user, slot))


def shape_of(node: Node, output: int = 0) -> tuple[int, ...]:
    """Return the shape of a node's result."""
    return tuple(node._input_metadata[output].shape)


def backwards(chain: tuple[tuple[Node, int], ...]) -> Adjoint:
    """Return what carries rows ``(n, *shape)`` from the end of a chain to its parameter."""
    steps = [_VIEWS[node.name()](node, output) for node, output in chain]

    def carry(rows: Tensor) -> Tensor:
        for step in reversed(steps):
            rows = step(rows)
        return rows

    return carry


def _same(node: Node, output: int) -> Adjoint:
    return lambda rows: rows


def _reshape(node: Node, output: int) -> Adjoint:
    sizes = tuple(node._saved_self_sym_sizes)
    return lambda rows: rows.reshape(len(rows), *sizes)


def _unsqueeze(node: Node, output: int) -> Adjoint:
    sizes = list(shape_of(node))
    sizes.pop(signed(node._saved_dim))
    return lambda rows: rows.reshape(len(rows), *sizes)


def _t(node: Node, output: int) -> Adjoint:
    return lambda rows: rows.mT if rows.dim() == 3 else rows


def _transpose(node: Node, output: int) -> Adjoint:
    first, second = (signed(d) for d in (node._saved_dim0, node._saved_dim1))
    rank = len(shape_of(node))
    return lambda rows: rows.transpose(first % rank + 1, second % rank + 1)


def _permute(node: Node, output: int) -> Adjoint:
    dims = [signed(d) % len(shape_of(node)) for d in node._saved_dims]
    back = [dims.index(k) + 1 for k in range(len(dims))]
    return lambda rows: rows.permute(0, *back)


def _split(node: Node, output: int) -> Adjoint:
    sizes = tuple(node._saved_self_sym_sizes)
    dim = signed(node._saved_dim) % len(sizes)
    if node.name() == "SplitBackward0":
        start = output * node._saved_split_size
    else:
        start = sum(node._saved_split_sizes[:output])
    return _placed(sizes, dim, slice(start, start + shape_of(node, output)[dim]))


def _slice(node: Node, output: int) -> Adjoint:
    sizes = tuple(node._saved_self_sym_sizes)
    dim = signed(node._saved_dim) % len(sizes)
    end = min(signed(node._saved_end), sizes[dim])
    return _placed(sizes, dim, slice(signed(node._saved_start), end, node._saved_step))


def _placed(sizes: tuple[int, ...], dim: int, part: slice) -> Adjoint:
    def place(rows: Tensor) -> Tensor:
        whole = rows.new_zeros(len(rows), *sizes)
        whole[(slice(None),) * (dim + 1) + (part,)] = rows
        return whole

    return place


_VIEWS: dict[str, Callable[[Node, int], Adjoint]] = {
    "ToCopyBackward0": _same,
    "AliasBackward0": _same,
    "ViewBackward0": _reshape,
    "UnsafeViewBackward0": _reshape,
    "ReshapeAliasBackward0": _reshape,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "UnsqueezeBackward0": _unsqueeze,
    "TBackward0": _t,
    "TransposeBackward0": _transpose,
    "PermuteBackward0": _permute,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
    "SliceBackward0": _slice,
}
