r"""Adam and AdamW of torchao, which keep moments in 8 or 4 bits, or in float8.

    b' = β₁ b + (1 − β₁) u,      w − w' = lr / (1 − β₁ᵏ) · b' / (√v' / √(1 − β₂ᵏ) + ε)

as Adam's, from moments that were taken out of few bits. ``b'`` then goes into few bits, and the
next step finds ``f ∘ b'``. With ``b̂`` what it found and ``b'`` what was put away,

    f = 1 + (b̂ − b') b' / (b'² + ε²),      ε = 8 units in the last place of the largest |b'|

is the factor that gives ``b̂``, but where ``b'`` is nothing but rounding. What ``f ∘ b'`` leaves of
``b̂`` there is linear in no gradient: it is rounding. Steps are computed in float32. Tensors of
less than 4096 elements are not rounded. Source: torchao.optim of torchao 0.18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tracer.codec.wrapped import Wrapped, wrapped
from tracer.errors import UnsupportedRuleError
from tracer.rules.arithmetic import is_on, no_steps
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule

_UNITS = 8.0


class LowBitAdam(UpdateRule):
    """``torchao.optim.Adam8bit``, ``Adam4bit`` and ``AdamFp8``."""

    buffer, momentum, recorded = "exp_avg", "betas.0", True
    frozen = "the rounding of the stored momentum, and the second moments under it"

    def coupled_decay(self, numbers: Numbers) -> float:
        return float(numbers["weight_decay"])

    def shrinkage(self, numbers: Numbers) -> float:
        """Return what share of a parameter its decay takes beside the gradient."""
        return 0.0

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps(), "exp_avg_sq": torch.zeros_like(w)}

    def held(
        self, stored: Mapping[str, Any], group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        state = {key: dequantised(value) for key, value in stored.items()}
        buffer = state.get("exp_avg")
        if wrapped(stored.get("exp_avg")) is None:
            state.pop("exp_avg", None)
        return state, buffer

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, state = now.numbers, now.state
        b1, b2, eps, lr = (float(numbers[k]) for k in ("betas.0", "betas.1", "eps", "lr"))
        k, old = float(state["step"]) + 1, state["exp_avg_sq"]
        v = old.lerp(now.u.to(old).square(), 1 - b2)
        if is_on(numbers, "amsgrad") and "max_exp_avg_sq" in state:
            v = torch.maximum(state["max_exp_avg_sq"], v)
        move = Filter(
            through=lr / (1 - b1**k),
            keep=b1,
            gain=1 - b1,
            post=v.sqrt().div_((1 - b2**k) ** 0.5).add_(eps).double().reciprocal_(),
            decoupled=self.shrinkage(numbers),
        )
        return _as_found(move, now), {}


class LowBitAdamW(LowBitAdam):
    """``torchao.optim.AdamW8bit``, ``AdamW4bit`` and ``AdamWFp8``."""

    def coupled_decay(self, numbers: Numbers) -> float:
        return 0.0

    def shrinkage(self, numbers: Numbers) -> float:
        return float(numbers["lr"] * numbers["weight_decay"])


def _as_found(move: Filter, now: Now) -> Filter:
    """Return the filter of a step that found its buffer rounded."""
    if "exp_avg" not in now.state:
        return move
    put, found = now.total, now.state["exp_avg"].double()
    unit = max(torch.finfo(x.dtype).eps for x in (now.w, now.state["exp_avg"]))
    noise = max(_UNITS * unit * float(put.abs().amax()), torch.finfo(put.dtype).tiny)
    factor = (found - put) * put / (put.square() + noise**2) + 1
    left = (found - factor * put) * (move.keep * move.through)
    assert move.post is not None
    return replace(move, rounded=factor, beyond=left * move.post)


def dequantised(value: Any) -> Tensor:
    """Return a tensor of a state as a step computes with it, be it stored in few bits."""
    found = wrapped(value)
    if found is None:
        return torch.as_tensor(value)
    if found.name not in _UNPACKED:
        raise UnsupportedRuleError(
            f"the optimizer's state is a {found.name}; only those of torchao 0.18 are read.\n"
            "  1. Ask for tracincp, tracin-sgd or the measured drops (Replay.drops)."
        )
    return _UNPACKED[found.name](found)


def _looked_up(codes: Tensor, stored: Wrapped, shape: Sequence[int]) -> Tensor:
    blocks = stored.tensors["qmap"][codes.int()].reshape(len(stored.tensors["scale"]), -1)
    return (blocks * stored.tensors["scale"][:, None]).reshape(tuple(shape))


def _of_8_bits(stored: Wrapped) -> Tensor:
    return _looked_up(stored.tensors["codes"], stored, stored.tensors["codes"].shape)


def _of_4_bits(stored: Wrapped) -> Tensor:
    codes = stored.tensors["codes"]
    return _looked_up(torch.stack([codes >> 4, codes & 15], -1), stored, stored.context[1])


def _of_float8(stored: Wrapped) -> Tensor:
    codes, scale = stored.tensors["codes"], stored.tensors["scale"]
    return (codes.float().reshape(len(scale), -1) * scale[:, None]).reshape(codes.shape)


_UNPACKED = {
    "OptimState8bit": _of_8_bits,
    "OptimState4bit": _of_4_bits,
    "OptimStateFp8": _of_float8,
}
