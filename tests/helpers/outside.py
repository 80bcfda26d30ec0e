"""Optimizers from outside torch, written naively, and what the forward-buffer reference needs.

A class says how one vector passes through it (``moved``), with the factors that it had in the run
(``had``), and what decay does beside and inside the gradient (``shrinkage``).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from tests.helpers.accounts import Had
from tracer.rules.adabelief import AdaBelief as AdaBeliefRule
from tracer.rules.lamb import Lamb as LambRule
from tracer.rules.lars import LARS as LARSRule
from tracer.rules.prodigy import Prodigy as ProdigyRule
from tracer.rules.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD


class Naive(torch.optim.Optimizer):
    """One parameter after the other, as papers have it."""

    own: ClassVar = {}

    def __init__(self, params, **options):
        super().__init__(params, {**self.own, **options})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in [p for p in group["params"] if p.grad is not None]:
                state = self.state[p]
                state.update(state or self.fresh(p))
                self.move(p, p.grad.clone(), state, group)

    def fresh(self, p):
        return {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    @staticmethod
    def first(state, _w):
        """Return what an account of history begins with."""
        return state.get("exp_avg")

    @staticmethod
    def shrinkage(numbers, _had):
        """Return the share that decay takes of a parameter, and its factor inside ``u``."""
        return numbers["lr"] * numbers["weight_decay"], 0.0

    @classmethod
    def moved(cls, account, u, b, numbers, had):
        b1 = numbers["betas.0"]
        account.buffer = b1 * b + (1 - b1) * u
        return numbers["lr"] / (1 - b1 ** had.numbers["k"]) * account.buffer / had.divisor


class AdaBelief(Naive):
    """Zhuang et al. (2020)."""

    own: ClassVar = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    own |= {"weight_decouple": True}
    rule = AdaBeliefRule()

    def fresh(self, p):
        return {"exp_avg": torch.zeros_like(p), "exp_avg_var": torch.zeros_like(p)}

    def move(self, p, g, state, group):
        (b1, b2), b, s, k = group["betas"], state["exp_avg"], state["exp_avg_var"], group["step"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        b.copy_(b1 * b + (1 - b1) * g)
        s.copy_(b2 * s + (1 - b2) * (g - b) ** 2 + group["eps"])
        divisor = (s / (1 - b2**k)).sqrt() + group["eps"]
        p.sub_(group["lr"] / (1 - b1**k) * b / divisor)

    @staticmethod
    def had(_before, after, group, _w, _g):
        k = group["step"]
        divisor = (after["exp_avg_var"] / (1 - group["betas"][1] ** k)).sqrt() + group["eps"]
        return Had(divisor, numbers={"k": k})


class Lamb(Naive):
    """You et al. (2019), decay inside of what is measured."""

    own: ClassVar = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}
    own |= {"weight_decouple": False, "grad_averaging": True, "adam": False}
    rule = LambRule()

    def move(self, p, g, state, group):
        (b1, b2), b, v = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        b.copy_(b1 * b + (1 - b1) * g)
        v.copy_(b2 * v + (1 - b2) * g**2)
        r = b / (v.sqrt() + group["eps"]) + group["weight_decay"] * p
        state["trust"] = float(p.norm()) / (float(r.norm()) + group["eps"])
        p.sub_(group["lr"] / (1 - b1 ** group["step"]) * state["trust"] * r)

    @staticmethod
    def had(_before, after, group, _w, _g):
        divisor = (after["exp_avg_sq"].sqrt() + group["eps"]) / after["trust"]
        return Had(divisor, numbers={"k": group["step"], "trust": after["trust"]})

    @staticmethod
    def shrinkage(numbers, had):
        size = numbers["lr"] / (1 - numbers["betas.0"] ** had.numbers["k"])
        return size * had.numbers["trust"] * numbers["weight_decay"], 0.0


class LARS(Naive):
    """You et al. (2017); vectors are moved as SGD moves them, without decay."""

    own: ClassVar = {"momentum": 0.9, "dampening": 0.2, "nesterov": False}
    own |= {"weight_decay": 0.0, "trust_coefficient": 0.1}
    rule = LARSRule()

    def fresh(self, p):
        return {"momentum_buffer": torch.zeros_like(p)}

    def move(self, p, g, state, group):
        trust, decay = self._of(p, g, group)
        b = state["momentum_buffer"]
        u = trust * (g + decay * p)
        b.copy_(group["momentum"] * b + (1 - group["dampening"]) * u)
        p.sub_(group["lr"] * (u + group["momentum"] * b if group["nesterov"] else b))

    @staticmethod
    def _of(p, g, group):
        if p.dim() < 2:
            return 1.0, 0.0
        decay = group["weight_decay"]
        whole = float(g.norm()) + decay * float(p.norm())
        return group["trust_coefficient"] * float(p.norm()) / whole, decay

    @classmethod
    def had(cls, _before, _after, group, w, g):
        return Had(numbers=dict(zip(("trust", "decay"), cls._of(w, g, group), strict=True)))

    @staticmethod
    def first(state, _w):
        return state.get("momentum_buffer")

    @staticmethod
    def shrinkage(_numbers, had):
        return 0.0, had.numbers["decay"]

    @classmethod
    def moved(cls, account, u, b, numbers, had):
        u = had.numbers["trust"] * u
        account.buffer = numbers["momentum"] * b + (1 - numbers["dampening"]) * u
        ahead = u + numbers["momentum"] * account.buffer
        return numbers["lr"] * (ahead if numbers["nesterov"] else account.buffer)


class SGDScheduleFree(Naive):
    """Defazio et al. (2024): ``x`` is the average of all ``z``, gradients are taken between."""

    own: ClassVar = {"momentum": 0.9, "weight_decay": 0.0, "warmup_steps": 3, "r": 1.0, "k": 0}
    own |= {"weight_lr_power": 2.0, "weight_sum": 0.0, "lr_max": -1.0}
    rule = ScheduleFreeSGD()

    @staticmethod
    def beta(numbers):
        return numbers["momentum"]

    def step(self, closure=None):
        for group in self.param_groups:
            k = group["k"]
            group["rate"] = group["lr"] * min(1.0, (k + 1) / group["warmup_steps"])
            group["lr_max"] = max(group["rate"], group["lr_max"])
            weight = (k + 1) ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
            group["weight_sum"] += weight
            group["share"] = weight / group["weight_sum"]
        super().step()
        for group in self.param_groups:
            group["k"] += 1

    def fresh(self, p):
        return {"z": p.clone(), "exp_avg_sq": torch.zeros_like(p)}

    def divisor(self, g, state, group):
        return 1.0

    def move(self, p, g, state, group):
        beta, z, c = self.beta(group), state["z"], group["share"]
        state["divisor"] = divisor = self.divisor(g, state, group)
        x = (p - (1 - beta) * z) / beta
        z.sub_(group["rate"] * (g / divisor + group["weight_decay"] * p))
        p.copy_(beta * ((1 - c) * x + c * z) + (1 - beta) * z)

    @classmethod
    def had(cls, _before, after, group, _w, _g):
        numbers = {"rate": group["rate"], "share": group["share"], "beta": cls.beta(group)}
        return Had(after["divisor"], numbers=numbers)

    @staticmethod
    def first(state, w):
        """Only how far the two states are apart has a part in later moves."""
        return torch.stack([w - state["z"], torch.zeros_like(w)]) if "z" in state else None

    @staticmethod
    def shrinkage(numbers, had):
        return 0.0, numbers["weight_decay"] * had.divisor

    @classmethod
    def moved(cls, account, u, b, numbers, had):
        """An account has a share in ``y`` and in ``z``."""
        beta, c = had.numbers["beta"], had.numbers["share"]
        y, z = b if b.dim() > u.dim() else (b, b)
        x, after = (y - (1 - beta) * z) / beta, z - had.numbers["rate"] * u / had.divisor
        new = beta * ((1 - c) * x + c * after) + (1 - beta) * after
        account.buffer = torch.stack([new, after])
        return y - new


class AdamWScheduleFree(SGDScheduleFree):
    """The same with Adam's denominator under the gradient."""

    own: ClassVar = {**SGDScheduleFree.own, "betas": (0.9, 0.99), "eps": 1e-8}
    rule = ScheduleFreeAdamW()

    @staticmethod
    def beta(numbers):
        return numbers["betas"][0]

    def divisor(self, g, state, group):
        b2, v = group["betas"][1], state["exp_avg_sq"]
        v.copy_(b2 * v + (1 - b2) * g**2)
        return (v / (1 - b2 ** group["step"])).sqrt() + group["eps"]


class Prodigy(Naive):
    """Mishchenko and Defazio (2023)."""

    own: ClassVar = {"betas": (0.9, 0.99), "eps": 1e-4, "weight_decay": 0.0, "d": 0.01, "k": 0}
    own |= {"numerator": 0.0, "decouple": True, "use_bias_correction": True}
    rule = ProdigyRule()

    def fresh(self, p):
        return {**super().fresh(p), "s": torch.zeros_like(p), "p0": p.clone()}

    def move(self, p, g, state, group):
        (b1, b2), d, lr = group["betas"], group["d"], group["lr"]
        state |= {"size": 0.0, "d before": d, "divisor": 1.0}
        if lr == 0:
            return
        k = group["k"] = group["k"] + (p is group["params"][0])
        state["size"] = d * lr * (1 - b2**k) ** 0.5 / (1 - b1**k)
        state["d before"] = d
        group["numerator"] += d**2 * lr * float((g * (state["p0"] - p)).sum())
        for key, old, new in (("exp_avg", b1, d * g), ("exp_avg_sq", b2, d**2 * g**2)):
            state[key].copy_(old * state[key] + (1 - old) * new)
        state["s"].copy_(b2**0.5 * state["s"] + d**2 * lr * g)
        if p is group["params"][-1]:
            self.end(group)

    def end(self, group):
        sizes = sum(float(self.state[p]["s"].abs().sum()) for p in group["params"])
        group["numerator"] *= group["betas"][1] ** 0.5
        group["d"] = max(group["d"], group["numerator"] / sizes)
        for p in [p for p in group["params"] if p.grad is not None]:
            state = self.state[p]
            state["divisor"] = state["exp_avg_sq"].sqrt() + group["d"] * group["eps"]
            shrunk = p * (1 - state["size"] * group["weight_decay"])
            p.copy_(shrunk - state["size"] * state["exp_avg"] / state["divisor"])

    @staticmethod
    def had(_before, after, _group, _w, _g):
        numbers = {"size": after["size"], "d": after["d before"]}
        return Had(after["divisor"], numbers=numbers)

    @staticmethod
    def shrinkage(numbers, had):
        return had.numbers["size"] * numbers["weight_decay"], 0.0

    @classmethod
    def moved(cls, account, u, b, numbers, had):
        b1 = numbers["betas.0"]
        account.buffer = b1 * b + (1 - b1) * had.numbers["d"] * u if numbers["lr"] else b
        return had.numbers["size"] * account.buffer / had.divisor
