r"""Muon: the momentum, orthogonalised by a polynomial.

    b' = μ b + (1 − μ) u,      M = b'   (Nesterov: μ b' + (1 − μ) u),
    w − w' = lr s NS(M) + lr decay w,      s = √max(1, p/d) or 0.2 √max(p, d), for M ``(p, d)``.

Newton–Schulz multiplies a matrix from one side by polynomials in itself: ``X ← B X`` with the
bracket ``B = aI + bA + cA²`` and ``A = X Xᵀ``, from ``X = M / ‖M‖``. So ``NS(M) = L M`` with ``L``
the product of the brackets over ``‖M‖`` as they were in the run, from the left, or from the right
where ``p > d``.

Torch takes the products in bfloat16 and gets ``U``, which ``L M`` misses by their rounding. The map
here is the one nearest to ``L`` that gives ``U`` in the directions that bfloat16 leaves of ``M``:

    L' = L + (U − L M) Mᵀ (M Mᵀ + ε² I)⁻¹,      ε = 2⁻⁸ ‖M‖ / √p

Without ``ε`` the division is by singular values that are nothing but rounding: shares then change
by half of themselves when gradients change in their seventh digit. What ``L'`` leaves of the step,
``U − L' M``, no gradient is linear in: it is rounding. Source: torch.optim.Muon of torch 2.13.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracer.rules.arithmetic import is_on, shrinkage
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule
from tracer.rules.sides import Sides

_UNIT = 2.0**-8  # of bfloat16


class Muon(UpdateRule):
    """``torch.optim.Muon``."""

    buffer, momentum = "momentum_buffer", "momentum"
    frozen = "the matrix that orthogonalises the momentum"

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, mu = now.numbers, float(now.numbers["momentum"])
        m = now.buffer.lerp(now.u, 1 - mu)
        m = now.u.lerp(m, mu) if is_on(numbers, "nesterov") else m
        size, ahead = _size(m, numbers), mu if is_on(numbers, "nesterov") else 1.0
        wide = m.T if m.shape[0] > m.shape[1] else m
        left, rest = orthogonalising(wide, numbers)
        rest = size * (rest.T if wide is not m else rest)
        matrices = (left.double(), None) if wide is m else (None, left.double())
        move = Filter(
            direct=size * (1 - ahead),
            through=size * ahead,
            keep=mu,
            gain=1 - mu,
            decoupled=shrinkage(numbers),
            outer=Sides(tuple(m.shape), matrices),
            beyond=rest.double().contiguous(),
        )
        return move, {}


def _size(m: Tensor, numbers: Numbers) -> float:
    p, d = m.shape
    how = numbers.get("adjust_lr_fn")
    alike = how == "match_rms_adamw"
    return float(numbers["lr"] * (0.2 * math.sqrt(max(p, d)) if alike else max(1, p / d) ** 0.5))


def orthogonalising(m: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Return ``L'`` and ``U − L' M`` for a matrix that is not taller than wide.

    Products are taken in its dtype, at least float32: what they miss of ``L``, ``L'`` has not.
    """
    exact = m.to(torch.promote_types(m.dtype, torch.float32))
    low, left = in_bfloat16(exact, numbers)
    run = low.to(exact)
    missed, gram = (run - left @ exact) @ exact.T, (exact @ exact.T).double()
    noise = _UNIT**2 * gram.trace().clamp_min(torch.finfo(gram.dtype).tiny) / len(gram)
    gram.diagonal().add_(noise)
    solved = torch.cholesky_solve(missed.mT.double(), torch.linalg.cholesky_ex(gram)[0])
    left = left + solved.mT.to(left)
    return left, run - left @ exact


def in_bfloat16(m: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Return what torch makes of a matrix, operation by operation, and ``L`` in its dtype."""
    a, b, c = (float(numbers[f"ns_coefficients.{k}"]) for k in range(3))
    x = m.bfloat16()
    norm = x.norm().clamp(min=float(numbers["eps"]))
    x, left = x / norm, None
    for _ in range(int(numbers["ns_steps"])):
        gram = x @ x.T
        bracket = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, bracket, x, beta=a)
        bracket = bracket.to(m)
        bracket.diagonal().add_(a)
        left = bracket.div_(norm) if left is None else bracket @ left
    return x, torch.eye(len(x)).to(m).div_(norm) if left is None else left
