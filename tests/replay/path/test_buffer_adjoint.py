"""The adjoint of a buffer: outer products that wait change nothing in the sum."""

from __future__ import annotations

import pytest
import torch

from replay.gradients.forms.dense import Dense
from replay.gradients.forms.outer_products import OuterProducts
from replay.path.buffer_adjoint import BufferAdjoint

M, N, P, D = 5, 3, 6, 7


def outer(count):
    inputs, deltas = (torch.randn(count, 1, k, dtype=torch.float64) for k in (D, P))
    return OuterProducts(inputs, deltas, 0, P)


def rows(outer):
    return (outer.deltas.mT @ outer.inputs).flatten(1)


@pytest.mark.parametrize("keeps", [[0.9] * 12, [0.0, 0.9, 0.9, 0.0, 0.9, 0.9], [0.05] * 9])
@pytest.mark.parametrize("each", [1, 3])
def test_waiting_changes_nothing(keeps, each):
    torch.manual_seed(0)
    whole = torch.randn(M, P * D, dtype=torch.float64)
    asked, expected, waited = BufferAdjoint(whole.clone()), whole, []
    for keep in keeps:
        outers, batch = [outer(M) for _ in range(each)], outer(N)
        asked.add(outers, 0.3)
        expected = expected + 0.3 * sum(map(rows, outers))
        waits = asked.can_wait([batch])
        waited.append(waits)
        block = asked.blocks(whole=not waits)
        found = torch.zeros(N, M, dtype=torch.float64)
        for some in (slice(0, 2), slice(2, M)):
            found[:, some] = asked.scale * batch.with_vectors(block(some))
        if waits:
            found += asked.waiting(batch)
        assert torch.allclose(found, rows(batch) @ expected.T, rtol=1e-11)
        asked.fade(keep)
        expected = expected * keep
    assert True in waited
    assert False in waited


def test_what_cannot_be_had_from_factors_does_not_wait():
    asked = BufferAdjoint(torch.zeros(M, P * D))
    asked.add([outer(M)], 1.0)
    assert asked.can_wait([outer(N)])
    assert not asked.can_wait([outer(N), Dense(torch.zeros(N, P, D))])
    assert not asked.can_wait([outer(1000)])  # their products would cost more than the addition
