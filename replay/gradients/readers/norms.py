"""Scale and shift of normalisations: sums of the output gradient with the normalised input."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from replay.gradients.forms.form import Form, for_products
from replay.gradients.operations.graph import Arrival, Graph
from replay.gradients.readers.reader import Arrange, Reader, Shape, operand_shape, summed_rows


def _normalised(
    arrival: Arrival, shape: Shape, leading: int, channels: bool, x: Callable[[], Tensor]
) -> list[Reader]:
    """Read scale (slot 1) or shift (slot 2) of a normalisation whose normalised input is ``x()``.

    Args:
        arrival: The arrival.
        shape: Of the parameter.
        leading: Dimensions before it.
        channels: Whether dimensions follow it, over which is summed.
        x: Gives the normalised input, new.
    """
    if arrival.slot not in (1, 2):
        return []
    made = summed_rows(arrival, shape, operand_shape(arrival, shape))
    kind = "norm scale" if arrival.slot == 1 else "bias"

    def read(delta: Tensor, arrange: Arrange) -> Form:
        found = for_products(delta)
        found = x().mul_(found) if arrival.slot == 1 else found
        if channels and found.dim() > leading + 1:
            found = found.flatten(leading + 1).sum(-1)
        return made(arrange(found, leading))

    return [Reader(kind, arrival.node, leading, read)]


def layer_norm(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read a LayerNorm."""
    node = arrival.node
    saved = node._saved_input, node._saved_result1, node._saved_result2
    inputs, mean, scale = map(for_products, saved)
    leading = inputs.dim() - len(node._saved_normalized_shape)
    return _normalised(arrival, shape, leading, False, lambda: (inputs - mean).mul_(scale))


def group_norm(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read a GroupNorm."""
    node = arrival.node
    saved = node._saved_input, node._saved_result1, node._saved_result2
    inputs, mean, scale = map(for_products, saved)

    def x() -> Tensor:
        grouped: Tensor = inputs.reshape(*mean.shape, -1)
        return (grouped - mean[..., None]).mul_(scale[..., None]).view(inputs.shape)

    return _normalised(arrival, shape, 1, True, x)


def batch_norm(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read a BatchNorm, by the statistics that it used."""
    node = arrival.node
    inputs = for_products(node._saved_input)
    if getattr(node, "_saved_training", True):
        mean, scale = node._saved_result1, node._saved_result2
    else:
        mean = node._saved_running_mean
        scale = (node._saved_running_var + node._saved_eps).rsqrt()
    seen = (1, -1, *(1,) * (inputs.dim() - 2))
    found = lambda: (inputs - mean.view(seen)).mul_(scale.view(seen))  # noqa: E731
    return _normalised(arrival, shape, 1, True, found)
