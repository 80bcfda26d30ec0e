"""A filter's two directions."""

from __future__ import annotations

import pytest
import torch

from tracer.rules.filter import Filter


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize(
    "weights", [(0.3, 0.0, 1.0, 0.0), (0.0, 0.7, 0.9, 0.1), (1.1, 0.4, 0.5, 2)]
)
def test_backward_is_the_transpose_of_forward(pre, post, weights):
    generator = torch.Generator().manual_seed(1)
    u, b, q, adjoint, d, e = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    rule = Filter(*weights, d if pre else None, e if post else None)
    move, buffer = rule.forward(u, b)
    left = q @ move + adjoint @ buffer
    later = adjoint.clone()[None]
    of_u, scale = rule.backward(q[None], later)
    right = scale * of_u[0] @ u + rule.keep * later[0] @ b
    assert torch.allclose(left, right, rtol=1e-13)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "weights", [(0.0, 0.7, 0.9, 0.1), (1.1, 0.4, 0.5, 2), (0.3, 0.0, 1.0, 0.0)]
)
def test_so_it_is_with_a_matrix_from_either_side(side, weights):
    generator = torch.Generator().manual_seed(1)
    u, b, q, adjoint = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    size = 3 if side == "left" else 5
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    rule = Filter(*weights, **{side: matrix})
    move, buffer = rule.forward(u, b)
    plain, _ = Filter(*weights).forward(u, b)
    assert torch.allclose(move, matrix @ plain if side == "left" else plain @ matrix, rtol=1e-13)
    left, later = (q * move).sum() + (adjoint * buffer).sum(), adjoint.reshape(1, -1).clone()
    of_u, scale = rule.backward(q.reshape(1, -1), later)
    right = scale * of_u[0] @ u.flatten() + rule.keep * later[0] @ b.flatten()
    assert torch.allclose(left, right, rtol=1e-13)
