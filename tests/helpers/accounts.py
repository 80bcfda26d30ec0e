"""What torch had in a step, and one vector's way through the optimizer: the naive reference.

It takes factors from torch's own state, and pushes vectors forwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.optim._muon import _zeropower_via_newtonschulz as orthogonal

O = torch.optim  # noqa: E741


@dataclass(frozen=True)
class Had:
    """What torch had in a step of one parameter.

    Attributes:
        divisor: ``1 / D``; None where the step has none.
        matrix: Muon's, from the left, or from the right of a tall parameter.
        numbers: Its numbers after the step: ``step``, ``mu_product``.
        eta: ASGD's rate before it.
    """

    divisor: torch.Tensor | None = None
    matrix: torch.Tensor | None = None
    numbers: dict = field(default_factory=dict)
    eta: float = 0.0


def had(kind, before, after, group, w, g):
    """Return what torch had, from its state on either side and what it was given."""
    if hasattr(kind, "had"):
        return kind.had(before, after, group, w, g)
    whole = {k: v for k, v in after.items() if torch.is_tensor(v) or isinstance(v, int)}
    numbers = {k: float(v) for k, v in whole.items() if not getattr(v, "shape", ())}
    eta = float(before.get("eta", torch.tensor(float(group["lr"]))))
    matrix = _matrix(after["momentum_buffer"], group, g) if kind is O.Muon else None
    return Had(_divisor(kind, before, after, group, w, g), matrix, numbers, eta)


def _divisor(kind, before, after, group, w, g):
    if kind in (O.Adam, O.AdamW, O.NAdam, O.RAdam):
        v = after["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
        return (v / (1 - group["betas"][1] ** float(after["step"]))).sqrt() + group["eps"]
    if kind is O.SparseAdam:  # infinite in rows that the gradient has not
        found = torch.full_like(w, torch.inf)
        rows = g.coalesce().indices()[0]
        found[rows] = after["exp_avg_sq"][rows].sqrt() + group["eps"]
        return found
    if kind.__name__ == "Lion":
        b = before.get("exp_avg", torch.zeros_like(w))
        return (group["betas"][0] * b + (1 - group["betas"][0]) * g).abs()
    if kind is O.Adamax:
        return after["exp_inf"].clone()
    if kind is O.RMSprop:
        mean = after["grad_avg"] if group["centered"] else torch.zeros(())
        return (after["square_avg"] - mean**2).sqrt() + group["eps"]
    if kind is O.Adagrad:
        return after["sum"].sqrt() + group["eps"]
    if kind is O.Adadelta:
        moved = before.get("acc_delta", torch.zeros_like(w)) + group["eps"]
        return ((after["square_avg"] + group["eps"]) / moved).sqrt()
    if kind is O.Rprop:
        return after["prev"].abs() / after["step_size"]
    return _adafactor(after, group, w, g) if kind is O.Adafactor else None


def momentum(buffer, group, u):
    """Return what Muon orthogonalises."""
    mu = group["momentum"]
    return (1 - mu) * u + mu * buffer if group["nesterov"] else buffer.clone()


def _matrix(buffer, group, g):
    """Return ``L'`` from the singular values of the momentum and the step that torch takes."""
    m = momentum(buffer, group, -g if group.get("maximize") else g)
    run = orthogonal(m, group["ns_coefficients"], group["ns_steps"], group["eps"]).double()
    m, run = (x.T if x.shape[0] > x.shape[1] else x for x in (m, run))
    (a, b, c), x = group["ns_coefficients"], m.bfloat16()
    size = x.norm()
    x, left = x / size, torch.eye(len(x), dtype=torch.float64) / size.double()
    for _ in range(group["ns_steps"]):
        squares = x @ x.T
        rest = torch.addmm(squares, squares, squares, beta=b, alpha=c)  # a bracket without a
        left = a * left + rest.double() @ left
        x = torch.addmm(x, rest, x, beta=a)
    m = m.double()
    p, sizes, q = torch.linalg.svd(m, full_matrices=False)
    noise = (2**-8 * m.norm()) ** 2 / len(m)
    return left + (run - left @ m) @ q.T * (sizes / (sizes**2 + noise)) @ p.T


def polynomial(m, coefficients, steps):
    """Return Muon's matrix for a polynomial in exact numbers, from the singular values."""
    p, sizes, _ = torch.linalg.svd(m, full_matrices=False)
    a, b, c = coefficients
    scaled, factor = sizes / m.norm(), torch.ones_like(sizes) / m.norm()
    for _ in range(steps):
        bracket = a + b * scaled**2 + c * scaled**4
        scaled, factor = bracket * scaled, bracket * factor
    return p * factor @ p.T


def _adafactor(after, group, w, g):
    """Return ``u`` over the move."""
    k, d, lr = float(after["step"]), group["d"], float(group["lr"])
    least = group["eps"][0] or torch.finfo(w.dtype).eps
    if g.dim() > 1:
        rows, columns = after["row_var"], after["col_var"]
        v = rows * columns / rows.mean().clamp(min=least)
    else:
        v = after["variance"]
    divisor = v.sqrt().clamp(min=least)
    clipped = max(1.0, float((g / divisor).square().mean().sqrt()) / d)
    size = max(group["eps"][1], float(w.square().mean().sqrt())) * min(lr, k**-0.5)
    return divisor * clipped / size


class Account:
    """One vector's way through the optimizer: what it moved so far lies in ``buffer``."""

    def __init__(self, kind, buffer=None):
        self.kind, self.buffer = kind, buffer

    def move(self, u, numbers, had, *, fresh):
        """Return the move of one parameter when ``u`` comes in; ``fresh``: torch's first buffer."""
        if hasattr(self.kind, "moved"):
            b = torch.zeros_like(u) if self.buffer is None else self.buffer
            return self.kind.moved(self, u, b, numbers, had)
        return self._move(u, numbers, had, fresh)

    def _move(self, u, numbers, had, fresh):
        lr, kind, k = numbers["lr"], self.kind, had.numbers.get("step", 0.0)
        b = torch.zeros_like(u) if self.buffer is None else self.buffer
        if kind is O.SGD:
            return self._sgd(u, b, numbers, fresh)
        if kind is O.ASGD:
            return had.eta * u
        if kind in (O.Adam, O.AdamW, O.NAdam, O.RAdam, O.Adamax, O.SparseAdam):
            b1, took = numbers["betas.0"], kind is not O.SparseAdam or had.divisor.isfinite()
            self.buffer = torch.where(torch.as_tensor(took), b1 * b + (1 - b1) * u, b)
            return self._adam(u, numbers, had)
        if kind is O.Muon:
            mu, (rows, columns) = numbers["momentum"], u.shape
            self.buffer = mu * b + (1 - mu) * u
            m = (1 - mu) * u + mu * self.buffer if numbers["nesterov"] else self.buffer
            turned = m @ had.matrix.T if rows > columns else had.matrix @ m
            return lr * max(1, rows / columns) ** 0.5 * turned
        if kind.__name__ == "Lion":
            b1, b2 = numbers["betas.0"], numbers["betas.1"]
            self.buffer = b2 * b + (1 - b2) * u
            return lr * (b1 * b + (1 - b1) * u) / had.divisor
        if kind is O.RMSprop:
            if numbers["momentum"] == 0:
                return lr * u / had.divisor
            self.buffer = numbers["momentum"] * b + u / had.divisor
            return lr * self.buffer
        if kind is O.Adagrad:
            return lr / (1 + (k - 1) * numbers["lr_decay"]) * u / had.divisor
        if kind is O.Rprop:
            return torch.where(had.divisor == 0, 0.0, u / had.divisor)
        return (lr if kind is O.Adadelta else 1.0) * u / had.divisor

    def _sgd(self, u, b, numbers, fresh):
        lr, mu = numbers["lr"], numbers["momentum"]
        if mu == 0:
            return lr * u
        self.buffer = u.clone() if fresh else mu * b + (1 - numbers["dampening"]) * u
        return lr * (u + mu * self.buffer) if numbers["nesterov"] else lr * self.buffer

    def _adam(self, u, numbers, had):
        lr, b1, k = numbers["lr"], numbers["betas.0"], had.numbers["step"]
        corrected = self.buffer / (1 - b1**k)
        if self.kind is O.SparseAdam:
            corrected = corrected * (1 - numbers["betas.1"] ** k) ** 0.5
        if self.kind is O.RAdam:
            far, b2 = 2 / (1 - numbers["betas.1"]) - 1, numbers["betas.1"]
            rho = far - 2 * k * b2**k / (1 - b2**k)
            if rho <= 5:
                return lr * corrected
            r = ((rho - 4) * (rho - 2) * far / ((far - 4) * (far - 2) * rho)) ** 0.5
            plain = (had.divisor - numbers["eps"]) * (1 - b2**k) ** 0.5 + numbers["eps"]
            return lr * corrected * r * (1 - b2**k) ** 0.5 / plain
        if self.kind is O.NAdam:
            mu, ahead = (
                b1 * (1 - 0.5 * 0.96 ** (n * numbers["momentum_decay"])) for n in (k, k + 1)
            )
            done = had.numbers["mu_product"]
            now, later = (1 - mu) / (1 - done) * u, ahead / (1 - done * ahead) * self.buffer
            return lr * (now + later) / had.divisor
        return lr * corrected / had.divisor


def shrinkage(kind, numbers, had):
    """Return the share that decay takes of a parameter, apart from ``u``, and that inside ``u``."""
    decay = numbers.get("weight_decay", 0.0)
    if hasattr(kind, "shrinkage"):
        return kind.shrinkage(numbers, had)
    if kind is O.ASGD:
        return numbers["lambd"] * had.eta, decay
    if (
        kind in (O.Adafactor, O.Muon)
        or kind.__name__ == "Lion"
        or numbers.get("decoupled_weight_decay") == 1
    ):
        return numbers["lr"] * decay, 0.0
    return 0.0, decay
