"""Weights and biases of convolutions."""

from __future__ import annotations

from torch import Tensor

from replay.gradients.forms.convolution import Convolved, Geometry
from replay.gradients.forms.dense import matrices
from replay.gradients.forms.form import Form, for_products
from replay.gradients.operations.graph import Arrival, Graph
from replay.gradients.readers.reader import Arrange, Reader, Shape


def convolution(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read a convolution, transposed or not."""
    node = arrival.node
    if not arrival.as_it_is or arrival.slot not in (1, 2):
        return []
    if arrival.slot == 2:

        def bias(delta: Tensor, arrange: Arrange) -> Form:
            return matrices(for_products(arrange(delta, 1)).flatten(3).sum((1, 3)), shape)

        return [Reader("bias", node, 1, bias)]
    inputs, transposed = node._saved_input, node._saved_transposed
    settings = (node._saved_stride, node._saved_padding, node._saved_dilation)
    stride, padding, dilation = (tuple(int(k) for k in values) for values in settings)
    geometry = Geometry(tuple(shape[2:]), stride, padding, dilation, node._saved_groups)
    if len(stride) != len(shape) - 2:
        return []

    def read(delta: Tensor, arrange: Arrange) -> Form:
        a, d = (for_products(arrange(x, 1)) for x in (inputs, delta))
        return Convolved(d, a, geometry) if transposed else Convolved(a, d, geometry)

    return [Reader("convolution", node, 1, read)]
