"""Embedding tables."""

from __future__ import annotations

import torch
from torch import Tensor

from replay.gradients.forms.form import Form, for_products
from replay.gradients.forms.lookup import Lookup
from replay.gradients.operations.graph import Arrival, Graph
from replay.gradients.operations.views import shape_of
from replay.gradients.readers.elementwise import add
from replay.gradients.readers.reader import Arrange, Reader, Shape


def embedding(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """Read a lookup; where all examples share it, the sum to which it is added."""
    node = arrival.node
    if node._saved_scale_grad_by_freq or not arrival.as_it_is:
        return []
    tokens, padding = node._saved_indices, node._saved_padding_idx
    tokens = torch.where(tokens == padding, -1, tokens) if 0 <= padding < shape[0] else tokens
    leading = tokens.dim()

    def own(delta: Tensor, arrange: Arrange) -> Form:
        return Lookup(arrange(tokens, leading), for_products(arrange(delta, leading)), shape[0])

    found = [Reader("embedding", node, leading, own)]
    return found + _positions(arrival, graph, shape, tokens)


def _positions(arrival: Arrival, graph: Graph, shape: Shape, tokens: Tensor) -> list[Reader]:
    """Read a lookup that all examples share where its result is added to what they do not."""
    found = []
    users = graph.users[arrival.node]
    if len(users) == 1 and users[0][0].name() in ("AddBackward0", "SubBackward0"):
        user, slot, _ = users[0]
        operand = shape_of(arrival.node)
        there = Arrival(arrival.name, (), user, slot)
        for added in add(there, graph, operand):

            def read(delta: Tensor, arrange: Arrange, added: Reader = added) -> Form:
                rows = added.read(delta, arrange).dense(slice(0, operand[0]))
                deltas = rows.view(len(rows), -1, operand[-1])
                all_tokens = tokens.flatten().expand(len(rows), -1)
                return Lookup(all_tokens, deltas, shape[0])

            found.append(Reader("positions", user, added.leading, read))
    return found
