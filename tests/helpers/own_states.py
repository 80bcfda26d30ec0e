"""Optimizers whose steps are split by the state that the run had; and rows of all from outside."""

from __future__ import annotations

from typing import ClassVar

import torch

from tests.helpers.accounts import Had
from tests.helpers.outside import (
    LARS,
    AdaBelief,
    AdamWScheduleFree,
    Lamb,
    Naive,
    Prodigy,
    SGDScheduleFree,
)
from tracer.rules.low_bit import LowBitAdamW
from tracer.rules.soap import SOAP as SOAPRule


class SOAP(Naive):
    """Vyas et al. (2024): Adam along eigenvectors of sums of products of gradients."""

    own: ClassVar = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    own |= {"precondition_frequency": 2, "correct_bias": 1.0, "normalize_gradient": 0.0}
    rule = SOAPRule()

    def fresh(self, p):
        return {**super().fresh(p), "sums": [torch.zeros(n, n).to(p) for n in p.shape], "Q": []}

    @staticmethod
    def turned(x, bases, *, back=False):
        """Return a vector or a matrix in other bases."""
        a, b = [*bases, None][:2]
        x = a @ x if back else a.T @ x
        return x if b is None else x @ (b.T if back else b)

    def move(self, p, g, state, group):
        (b1, b2), k, lr = group["betas"], group["step"] - 1, group["lr"]
        if not state["Q"]:
            self.add(g, state, b2)
            state["Q"] = [torch.linalg.eigh(s)[1].flip(1).clone() for s in state["sums"]]
        state["used"] = Q = [q.clone() for q in state["Q"]]
        state |= {"size": 0.0, "divisor": torch.ones_like(p)}
        if k == 0:
            return
        b, v = state["exp_avg"], state["exp_avg_sq"]
        b.copy_(b1 * b + (1 - b1) * g)
        v.copy_(b2 * v + (1 - b2) * self.turned(g, Q) ** 2)
        state["divisor"] = v.sqrt() + group["eps"]
        move = self.turned(self.turned(b, Q) / state["divisor"], Q, back=True)
        state["size"] = lr * (1 - b2**k) ** 0.5 / (1 - b1**k) if group["correct_bias"] else lr
        if group["normalize_gradient"]:
            state["size"] /= float(move.square().mean().sqrt()) + group["eps"]
        p.sub_(state["size"] * move).mul_(1 - lr * group["weight_decay"])
        self.add(g, state, b2)
        if k % group["precondition_frequency"] == 0:
            state["Q"] = [torch.linalg.qr(s @ q)[0] for s, q in zip(state["sums"], Q, strict=True)]

    @staticmethod
    def add(g, state, b2):
        sides = (g @ g.T, g.T @ g) if g.dim() == 2 else (torch.outer(g, g),)
        for s, one in zip(state["sums"], sides, strict=True):
            s.copy_(b2 * s + (1 - b2) * one)

    @staticmethod
    def had(_before, after, group, _w, _g):
        numbers = {"k": group["step"] - 1, "size": after["size"]}
        return Had(after["divisor"], after["used"], numbers)

    @staticmethod
    def shrinkage(numbers, had):
        return numbers["lr"] * numbers["weight_decay"] * (had.numbers["k"] > 0), 0.0

    @classmethod
    def moved(cls, account, u, b, numbers, had):
        if had.numbers["k"] == 0:
            return torch.zeros_like(u)
        b1 = numbers["betas.0"]
        account.buffer = b1 * b + (1 - b1) * u
        move = cls.turned(
            cls.turned(account.buffer, had.matrix) / had.divisor, had.matrix, back=True
        )
        return had.numbers["size"] * (1 - numbers["lr"] * numbers["weight_decay"]) * move


class FewBitsRule(LowBitAdamW):
    """Of what ``FewBits`` keeps: moments that were rounded, as plain tensors."""

    def held(self, stored, group, w):
        state, buffer = super().held(stored, group, w)
        return state if buffer is None else {**state, "exp_avg": buffer}, buffer


class FewBits(Naive):
    """AdamW that keeps its moments in 16 levels of either sign."""

    own: ClassVar = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    rule = FewBitsRule()

    def fresh(self, p):
        return {**super().fresh(p), "step": torch.zeros(())}

    def move(self, p, g, state, group):
        (b1, b2), k, lr = group["betas"], int(state["step"]) + 1, group["lr"]
        b = b1 * state["exp_avg"] + (1 - b1) * g
        v = b2 * state["exp_avg_sq"] + (1 - b2) * g**2
        state["divisor"] = (v / (1 - b2**k)).sqrt() + group["eps"]
        p.mul_(1 - lr * group["weight_decay"]).sub_(lr / (1 - b1**k) * b / state["divisor"])
        size = float(b.abs().max()) / 16
        kept = (b / size).round() * size
        state["factor"] = torch.where(b == 0, 1.0, kept / b)
        state |= {"exp_avg": kept, "exp_avg_sq": (v / v.max() * 16).ceil() * v.max() / 16}
        state["step"] += 1

    @staticmethod
    def had(_before, after, _group, _w, _g):
        return Had(after["divisor"], after["factor"].clone(), {"k": float(after["step"])})

    @classmethod
    def moved(cls, account, u, b, numbers, had):
        found = super().moved(account, u, b, numbers, had)
        account.buffer = account.buffer * had.matrix
        return found


ROWS = [
    (AdaBelief, {"lr": 0.02, "weight_decay": 0.1}),
    (Lamb, {"lr": 0.02, "weight_decay": 0.1}),
    (LARS, {"lr": 0.1, "weight_decay": 0.1}),
    (SGDScheduleFree, {"lr": 0.1, "weight_decay": 0.1}),
    (AdamWScheduleFree, {"lr": 0.02, "weight_decay": 0.1}),
    (Prodigy, {"lr": 1.0, "weight_decay": 0.1}),
    (SOAP, {"lr": 0.05, "weight_decay": 0.1}),
    (FewBits, {"lr": 0.02, "weight_decay": 0.1}),
]
OPTIONS = [
    (LARS, {"lr": 0.1, "weight_decay": 0.1, "nesterov": True}),
    (SOAP, {"lr": 0.05, "normalize_gradient": 1.0}),
    (SOAP, {"lr": 0.05, "correct_bias": 0.0, "precondition_frequency": 3}),
]
