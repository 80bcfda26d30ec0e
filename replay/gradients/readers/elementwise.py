"""Parameters that are added, multiplied or repeated, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from replay.gradients.operations.graph import Arrival, Graph
from replay.gradients.operations.views import shape_of
from replay.gradients.readers.reader import Reader, Shape, operand_shape, summed_rows


def elementwise(
    kind: str, arrival: Arrival, shape: Shape, times: Callable[[Tensor], Tensor]
) -> Reader:
    """Read an operation with broadcasting whose gradient is ``times(δ)``, summed to the operand."""
    operand, out = operand_shape(arrival, shape), shape_of(arrival.node)
    padded = (1,) * (len(out) - len(operand)) + operand
    leading = 0
    while leading < len(out) and padded[leading] == 1:
        leading += 1
    if leading == len(out):  # a scalar: all of it is summed
        leading = max(1, len(out))
    made = summed_rows(arrival, shape, operand)
    return Reader(kind, arrival.node, leading, lambda d, arrange: made(arrange(times(d), leading)))


def add(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read a sum or a difference."""
    node = arrival.node
    factor = node._saved_alpha if arrival.slot == 1 else 1
    if node.name() == "SubBackward0" and arrival.slot == 1:
        factor = -factor
    return [elementwise("added", arrival, shape, lambda d: d * factor if factor != 1 else d)]


def multiply(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read a product, element by element."""
    other = arrival.node._saved_self if arrival.slot == 1 else arrival.node._saved_other
    if other is None:
        return []
    return [elementwise("scale", arrival, shape, lambda d: d * other)]


def expand(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read ``expand``: a class token, say."""
    return [elementwise("expanded", arrival, shape, lambda d: d)]


def repeat(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read ``repeat`` of a vector, which InstanceNorm does."""
    repeats = tuple(arrival.node._saved_repeats)
    if len(shape) != 1 or len(repeats) != 1 or arrival.chain:
        return []
    made = summed_rows(arrival, shape, shape)
    seen = (*repeats, *shape)
    return [Reader("repeated", arrival.node, 1, lambda d, arrange: made(arrange(d, 1)), seen)]


def prelu(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read the slope of a PReLU."""
    if arrival.slot != 1:
        return []
    inputs = arrival.node._saved_self
    return [elementwise("PReLU", arrival, shape, lambda d: d * inputs.clamp_max(0))]
