"""What torch's optimizers do that few would guess; as of torch 2.13."""

from __future__ import annotations

import math

import pytest
import torch

O = torch.optim  # noqa: E741
LR, W, G = 0.1, 3.0, 2.0


def course(kind, gradients, **options):
    """Return the moves of a parameter of one element that begins at ``W``."""
    shape = (1, 1) if kind is O.Muon else (1,)
    w = torch.full(shape, W, dtype=torch.float64, requires_grad=True)
    optimizer, moves = kind([w], lr=LR, **options), []
    for g in gradients:
        before = float(w.detach())
        w.grad = torch.full_like(w, g)
        if kind is O.SparseAdam:  # of the one row that there is
            w.grad = torch.sparse_coo_tensor([[0]], w.grad, w.shape)
        optimizer.step()
        moves.append(before - float(w.detach()))
    return moves


MU, AHEAD = (0.9 * (1 - 0.5 * 0.96 ** (k * 4e-3)) for k in (1, 2))
ONE = 1.0  # what Muon's polynomial makes of it: 0.7, not 1
for _ in range(5):
    ONE = 3.4445 * ONE - 4.775 * ONE**3 + 2.0315 * ONE**5
FIRST = {  # by hand: of a gradient of 2
    O.SGD: LR * G,
    O.Adam: LR,
    O.AdamW: LR * (1 + 0.01 * W),  # a decay that was not asked for
    O.RMSprop: LR * 10,  # as the mean square begins with 0, and nothing corrects for that
    O.Adagrad: LR,
    O.Muon: LR * (ONE + 0.1 * W),  # a decay that was not asked for
    O.NAdam: LR * (1 + AHEAD * 0.1 / (1 - MU * AHEAD)),  # 1.06 times Adam's
    O.RAdam: LR * G,  # as plain SGD: no denominator in the first five steps
    O.Adamax: LR,
    O.Adadelta: LR * G * 1e-3 / math.sqrt(0.1 * G**2),  # 1e-6 under a root, whatever the size
    O.Adafactor: LR * W,  # as large as the parameter
    O.ASGD: LR * (G + 1e-4 * W),  # a decay that was not asked for
    O.SparseAdam: LR,
    O.Rprop: LR,
}


REMEMBER = (O.Adam, O.AdamW, O.NAdam, O.RAdam, O.Adamax, O.SparseAdam)


@pytest.mark.parametrize("kind", FIRST, ids=lambda kind: kind.__name__)
def test_the_first_step_by_hand(kind):
    share = 0.02 if kind is O.Muon else 1e-5  # of bfloat16
    assert course(kind, [G])[0] == pytest.approx(FIRST[kind], rel=share)


@pytest.mark.parametrize("kind", FIRST, ids=lambda kind: kind.__name__)
def test_what_a_gradient_of_zero_does_at_the_second_step(kind):
    move, buffers = course(kind, [G, 0.0])[1], REMEMBER
    if kind is O.Muon:  # the momentum is made as large as ever
        assert move == pytest.approx(LR * (ONE + 0.1 * (W - FIRST[kind])), rel=0.02)
    elif kind is O.ASGD:
        assert move == pytest.approx(LR * 1e-4 * (W - FIRST[kind]), rel=1e-4)  # decay goes on
    else:
        assert (move > 1e-3) == (kind in buffers)
        assert move == 0 or kind in buffers


def test_asgd_takes_a_scheduled_rate_one_step_late():
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer, moves = O.ASGD([w], lr=0.1, lambd=0.0), []
    for rate in (0.1, 0.01, 0.001):
        optimizer.param_groups[0]["lr"], before = rate, float(w.detach())
        w.grad = torch.ones_like(w)
        optimizer.step()
        moves.append(before - float(w.detach()))
    assert moves == pytest.approx([0.1, 0.1, 0.01], rel=1e-6)
    assert moves[2] != 0.01  # its rate is kept in float32


def test_rprop_stands_still_where_a_gradient_turns():
    moves = course(O.Rprop, [G, -G, -G, -G])
    assert moves == pytest.approx([LR, 0, -LR / 2, -LR / 2 * 1.2])


def test_nadam_keeps_its_product_in_float32():
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    w.grad = torch.ones_like(w)
    optimizer = O.NAdam([w])
    optimizer.step()
    assert optimizer.state[w]["mu_product"].dtype == torch.float32


def trained(kind, **options):
    """Return what 20 steps of random gradients make of 2,000 numbers in float32."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(50, 40, generator=generator).requires_grad_()
    optimizer = kind([w], lr=0.01, **options, **({"lambd": 0.1} if kind is O.ASGD else {}))
    for _ in range(20):
        w.grad = torch.randn(50, 40, generator=generator)
        optimizer.step()
    return w.detach()


FOREACH = [kind for kind in FIRST if kind not in (O.Muon, O.SparseAdam)]


@pytest.mark.parametrize("kind", FOREACH, ids=lambda kind: kind.__name__)
def test_what_foreach_changes_in_bits(kind):
    found = [trained(kind, foreach=foreach) for foreach in (False, True)]
    assert torch.allclose(*found, rtol=0, atol=1e-5)
    assert torch.equal(*found) == (kind not in OTHER)


OTHER = (O.NAdam, O.RAdam, O.Adafactor, O.ASGD)


@pytest.mark.parametrize("kind", [O.SGD, O.Adam, O.AdamW, O.Adagrad], ids=lambda k: k.__name__)
def test_what_fused_changes_in_bits(kind):
    found = [trained(kind, **options) for options in ({"foreach": False}, {"fused": True})]
    assert torch.allclose(*found, rtol=0, atol=1e-6)
    assert torch.equal(*found) == (kind is O.SGD)
