"""A filter's two directions."""

from __future__ import annotations

import pytest
import torch

from tracer.rules.filter import Filter
from tracer.rules.sides import Sides


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


@pytest.mark.parametrize("rounded", [False, True], ids=["", "rounded"])
@pytest.mark.parametrize("post", [False, True], ids=["", "post"])
@pytest.mark.parametrize("inner", ["", "bc", "abc"])
@pytest.mark.parametrize("outer", ["c", "ab"])
@pytest.mark.parametrize("weights", [(0.0, 0.7, 0.9, 0.1), (1.1, 0.4, 0.5, 2), (0.3, 0, 1, 0)])
def test_so_it_is_with_matrices_from_the_sides(inner, outer, post, rounded, weights):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    u, b, q, adjoint, e, f = draw(6, 2, 3, 5)
    a = {name: draw(n, n) for name, n in zip("abc", (2, 3, 5), strict=True)}
    sides = [
        Sides((2, 3, 5), tuple(a[k] if k in names else None for k in "abc"))
        for names in (inner, outer)
    ]
    parts = {"inner": sides[0] if inner else None, "outer": sides[1] if outer else None}
    rule = Filter(*weights, post=e if post else None, rounded=f if rounded else None, **parts)
    move, buffer = rule.forward(u, b)
    plain, kept = Filter(*weights).forward(u, b * f if rounded else b)
    ones = [
        {k: a[k] if k in names else torch.eye(len(a[k])).double() for k in a}
        for names in (inner, outer)
    ]
    turned = torch.einsum("xyz,ax,by,cz->abc", plain, *ones[0].values()) * (e if post else 1)
    whole = torch.einsum("xyz,ax,by,cz->abc", turned, *ones[1].values())
    assert torch.allclose(move, whole, rtol=1e-12)
    assert torch.allclose(buffer, kept, rtol=1e-13)
    left, later = (q * move).sum() + (adjoint * buffer).sum(), adjoint.reshape(1, -1).clone()
    flat = rule.flat(torch.float64)
    of_u, scale = flat.backward(q.reshape(1, -1), later)
    faded = later[0] * flat.kept
    right = scale * of_u[0] @ u.flatten() + faded @ b.flatten()
    assert torch.allclose(left, right, rtol=1e-12)
