"""A step divided block by block equals the same algebra on whole vectors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from replay.steps.displacement import split
from replay.steps.effective_gradient import EffectiveGradient
from tracer.rules.filter import Filter

SIZE = 400_001  # elements: four blocks, the last one not whole


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks(dtype):
    torch.manual_seed(0)
    w, moved, g, h, before = (torch.randn(SIZE, dtype=dtype) for _ in range(5))
    step = SimpleNamespace(
        before=SimpleNamespace(parameters={"w": w, "frozen": w}),
        after=SimpleNamespace(parameters={"w": moved, "frozen": moved}),
    )
    d, e = (torch.rand(SIZE, dtype=torch.float64) for _ in range(2))
    rule = Filter(0.1, 0.2, 0.9, 0.5, pre=d, post=e, decoupled=0.01)
    gradient = EffectiveGradient(g, h, w, -0.5, 0.3)
    buffer = before.double()
    found = split(
        step, {"w": gradient}, {"w": rule}, {"w": (buffer, None, None)}, torch.device("cpu"), dtype
    )
    u, v = -0.5 * g.double(), -0.5 * h.double() + 0.3 * w.double()
    held, pulled = 0.9 * buffer + 0.5 * d * u, 0.5 * d * v
    data = e * (0.1 * d * u + 0.2 * held)
    pull = e * (0.1 * d * v + 0.2 * pulled) + 0.01 * w.double()
    rest = w.double() - moved.double() - data - pull
    near = {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6}

    def equal(part, expected):
        assert part.dtype == dtype
        return torch.allclose(part.double(), expected, **near)

    assert equal(found.parts.data["w"], data)
    assert equal(found.parts.regulariser["w"], pull)
    assert equal(found.parts.rounding["w"], rest)
    assert equal(found.parts.rounding["frozen"], w.double() - moved.double())
    assert not found.parts.history
    assert torch.allclose(found.buffers["w"][0], held, rtol=1e-12)
    assert torch.allclose(found.buffers["w"][1], pulled, rtol=1e-12)
    assert found.norm == pytest.approx(float((u + v).norm()), rel=1e-12)
    assert found.largest["w"] == pytest.approx(float(rest.abs().max()), rel=1e-12)


def test_a_remainder_that_is_no_number_is_seen():
    w, moved = torch.randn(SIZE), torch.randn(SIZE)
    moved[SIZE // 2] = torch.nan
    step = SimpleNamespace(
        before=SimpleNamespace(parameters={"w": w}), after=SimpleNamespace(parameters={"w": moved})
    )
    largest = split(step, {}, {}, {}, torch.device("cpu")).largest["w"]
    assert largest != largest


def test_a_buffer_is_not_lent_to_a_parameter_that_moves_alike():
    """A momentum of 0 makes no buffer; ``old`` has one of zeros, and ``new`` has yet to get one."""
    w = torch.randn(3)
    state = SimpleNamespace(parameters={"old": w, "new": w})
    gradient, rule = EffectiveGradient(w, None, w, 1.0, 0.0), Filter(direct=0.1)
    known = {"old": (None, None, None)}
    found = split(
        SimpleNamespace(before=state, after=state),
        dict.fromkeys(["old", "new"], gradient),
        dict.fromkeys(["old", "new"], rule),
        known,
        torch.device("cpu"),
    )
    assert found.buffers == known
