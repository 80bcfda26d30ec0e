r"""The operations whose per-example gradients are known in a cheaper form.

Each entry of ``_KNOWN`` reads what autograd saved for one kind of node and says how to make a piece
of the node's output gradient. What it says is never taken on trust: ``engine`` compares it with
plain backward passes. Anything else takes the complete way.
"""

from __future__ import annotations

from collections.abc import Callable

from replay.gradients.operations.graph import Arrival, Graph
from replay.gradients.readers import elementwise, norms, weights
from replay.gradients.readers.use import Shape, Use


def candidates(arrival: Arrival, graph: Graph, shape: Shape) -> list[Use]:
    """Return ways to read an arrival of a parameter of some shape, in order of preference."""
    read = _KNOWN.get(arrival.node.name())
    if read is None:
        return []
    found = read(arrival, graph, shape)
    return [use for use in found if use is not None and use.leading > 0]


_KNOWN: dict[str, Callable[[Arrival, Graph, Shape], list[Use]]] = {
    "AddmmBackward0": weights.linear,
    "MmBackward0": weights.linear,
    "ConvolutionBackward0": weights.convolution,
    "EmbeddingBackward0": weights.embedding,
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
