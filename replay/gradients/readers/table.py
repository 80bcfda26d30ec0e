r"""The operations whose per-example gradients are known in a cheaper form.

Each row names the function that reads what autograd saved for one kind of node. It returns the
readers, best first, that make a parameter's gradients from the node's output gradient. They are
never trusted: ``proof`` compares what they make with plain backward passes. A parameter with an
operation that is not listed takes the complete way.
"""

from __future__ import annotations

from collections.abc import Callable

from replay.gradients.operations.graph import Arrival, Graph
from replay.gradients.readers import convolution, elementwise, embedding, linear, norms
from replay.gradients.readers.reader import Reader, Shape


def candidates(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Return ways to read an arrival of a parameter of some shape, in order of preference."""
    read = READERS.get(arrival.node.name())
    if read is None:
        return []
    found = read(arrival, graph, shape)
    return [reader for reader in found if reader.leading > 0]


READERS: dict[str, Callable[[Arrival, Graph, Shape], list[Reader]]] = {
    "AddmmBackward0": linear.linear,
    "MmBackward0": linear.linear,
    "ConvolutionBackward0": convolution.convolution,
    "EmbeddingBackward0": embedding.embedding,
    "NativeLayerNormBackward0": norms.layer_norm,
    "NativeGroupNormBackward0": norms.group_norm,
    "NativeBatchNormBackward0": norms.batch_norm,
    "CudnnBatchNormBackward0": norms.batch_norm,
    "AddBackward0": elementwise.add,
    "SubBackward0": elementwise.add,
    "MulBackward0": elementwise.multiply,
    "ExpandBackward0": elementwise.expand,
    "RepeatBackward0": elementwise.repeat,
    "PreluKernelBackward0": elementwise.prelu,
}
