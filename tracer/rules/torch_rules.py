r"""The update rules of torch.optim, each defined once: to execute a step again, and to split it.

``update`` repeats torch's order of operations, so that on a CPU it gives the same bits; ``filter``
gives it as a linear map (see ``filters``). Source: torch.optim 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from tracer.rules.filter import Filter

Numbers = Mapping[str, float]  # hyperparameters of a group at a step
State = dict[str, Tensor]  # of one parameter, by torch.optim's names


class UpdateRule(Protocol):
    """One rule."""

    @property
    def buffer(self) -> str | None:
        """Name of the linear part of its state."""

    @property
    def adapts(self) -> bool:
        """Whether it has second moments."""

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        """Return the state before a parameter's first step, without the buffer."""

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        """Return the state after a step, without the buffer: counts and second moments."""

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        """Return the step as a linear map.

        Args:
            state: After the step.
            numbers: The group's hyperparameters.
            first: There was no buffer before it.
        """

    def update(
        self, w: Tensor, gradient: Tensor, state: State, numbers: Numbers
    ) -> tuple[Tensor, State]:
        """Return parameter and state after a step, bitwise what torch.optim makes of them.

        Args:
            w: The parameter.
            gradient: As applied: clipped.
            state: Before the step, with the buffer; empty before the first.
            numbers: The group's hyperparameters.
        """


def drive(w: Tensor, gradient: Tensor, numbers: Numbers, decay: float) -> Tensor:
    """Return ``u``: the gradient with its sign and the decay that goes with it."""
    u = -gradient if numbers.get("maximize") else gradient
    return u.add(w, alpha=decay) if decay else u


class SGD:
    """Momentum, dampening, Nesterov, weight decay."""

    buffer, adapts = "momentum_buffer", False

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {}

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        return state

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        lr, mu = numbers["lr"], numbers.get("momentum", 0.0)
        decay = numbers.get("weight_decay", 0.0)
        if mu == 0:  # the buffer is neither used nor changed
            return Filter(direct=lr, coupled=decay)
        keep, gain = (0.0, 1.0) if first else (mu, 1 - numbers.get("dampening", 0.0))
        if numbers.get("nesterov"):
            return Filter(lr, lr * mu, keep, gain, coupled=decay)
        return Filter(0.0, lr, keep, gain, coupled=decay)

    def update(
        self, w: Tensor, gradient: Tensor, state: State, numbers: Numbers
    ) -> tuple[Tensor, State]:
        u = drive(w, gradient, numbers, numbers.get("weight_decay", 0.0))
        mu = numbers.get("momentum", 0.0)
        if mu:
            b = state.get("momentum_buffer")
            gain = 1 - numbers.get("dampening", 0.0)
            b = u.clone() if b is None else b.mul(mu).add_(u, alpha=gain)
            state = {**state, "momentum_buffer": b}
            u = u.add(b, alpha=mu) if numbers.get("nesterov") else b
        return w.add(u, alpha=-numbers["lr"]), state


class Adam:
    """Adam, AdamW, AMSGrad."""

    buffer, adapts = "exp_avg", True

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        state = {"step": torch.tensor(0.0), "exp_avg_sq": torch.zeros_like(w)}
        return {**state, "max_exp_avg_sq": torch.zeros_like(w)} if _ams(numbers) else state

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        b2 = numbers["betas.1"]
        v = state["exp_avg_sq"].mul(b2).addcmul_(u, u, value=1 - b2)
        after = {**state, "step": state["step"] + 1, "exp_avg_sq": v}
        if _ams(numbers):
            after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
        return after

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        b1, decay = numbers["betas.0"], numbers.get("weight_decay", 0.0)
        apart = bool(numbers.get("decoupled_weight_decay"))
        return Filter(
            through=_unbiased(state, numbers),
            keep=b1,
            gain=1 - b1,
            outside=self._denominator(state, numbers).double().reciprocal_(),
            coupled=0.0 if apart else decay,
            decoupled=numbers["lr"] * decay if apart else 0.0,
        )

    def update(
        self, w: Tensor, gradient: Tensor, state: State, numbers: Numbers
    ) -> tuple[Tensor, State]:
        decay = numbers.get("weight_decay", 0.0)
        apart = bool(numbers.get("decoupled_weight_decay"))
        state = state or {**self.initial(w, numbers), "exp_avg": torch.zeros_like(w)}
        if apart and decay:
            w = w.mul(1 - numbers["lr"] * decay)
        u = drive(w, gradient, numbers, 0.0 if apart else decay)
        average = state["exp_avg"].lerp(u, 1 - numbers["betas.0"])
        after = self.observe(state, u, numbers)
        size = _unbiased(after, numbers)
        w = w.addcdiv(average, self._denominator(after, numbers), value=-size)
        return w, {**after, "exp_avg": average}

    def _denominator(self, state: State, numbers: Numbers) -> Tensor:
        v = state["max_exp_avg_sq" if _ams(numbers) else "exp_avg_sq"]
        k = float(state["step"])
        correction: float = (1 - numbers["betas.1"] ** k) ** 0.5
        return (v.sqrt() / correction).add_(numbers["eps"])


def _ams(numbers: Numbers) -> bool:
    return bool(numbers.get("amsgrad"))


def _unbiased(state: State, numbers: Numbers) -> float:
    correction: float = 1 - numbers["betas.0"] ** float(state["step"])
    return numbers["lr"] / correction


class RMSprop:
    """Momentum behind the denominator; centered or not."""

    buffer, adapts = "momentum_buffer", True

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        state = {"step": torch.tensor(0.0), "square_avg": torch.zeros_like(w)}
        return {**state, "grad_avg": torch.zeros_like(w)} if numbers.get("centered") else state

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        alpha = numbers["alpha"]
        v = state["square_avg"].mul(alpha).addcmul_(u, u, value=1 - alpha)
        after = {**state, "step": state["step"] + 1, "square_avg": v}
        if numbers.get("centered"):
            after["grad_avg"] = state["grad_avg"].lerp(u, 1 - alpha)
        return after

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        lr, mu = numbers["lr"], numbers.get("momentum", 0.0)
        inside = self._denominator(state, numbers).double().reciprocal_()
        decay = numbers.get("weight_decay", 0.0)
        if mu > 0:
            return Filter(0.0, lr, mu, 1.0, inside, coupled=decay)
        return Filter(direct=lr, inside=inside, coupled=decay)

    def update(
        self, w: Tensor, gradient: Tensor, state: State, numbers: Numbers
    ) -> tuple[Tensor, State]:
        lr, mu = numbers["lr"], numbers.get("momentum", 0.0)
        u = drive(w, gradient, numbers, numbers.get("weight_decay", 0.0))
        after = self.observe(state or self.initial(w, numbers), u, numbers)
        denominator = self._denominator(after, numbers)
        if mu > 0:
            b = state.get("momentum_buffer")
            b = torch.zeros_like(w) if b is None else b
            b = b.mul(mu).addcdiv_(u, denominator)
            return w.add(b, alpha=-lr), {**after, "momentum_buffer": b}
        return w.addcdiv(u, denominator, value=-lr), after

    def _denominator(self, state: State, numbers: Numbers) -> Tensor:
        v = state["square_avg"]
        if numbers.get("centered"):
            v = v.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
        return v.sqrt().add_(numbers["eps"])


class Adagrad:
    """A sum of squares, no momentum."""

    buffer, adapts = None, True

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        start = numbers.get("initial_accumulator_value", 0.0)
        return {"step": torch.tensor(0.0), "sum": torch.full_like(w, start)}

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        return {"step": state["step"] + 1, "sum": state["sum"].addcmul(u, u, value=1)}

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        return Filter(
            direct=self._rate(state, numbers),
            inside=self._denominator(state, numbers).double().reciprocal_(),
            coupled=numbers.get("weight_decay", 0.0),
        )

    def update(
        self, w: Tensor, gradient: Tensor, state: State, numbers: Numbers
    ) -> tuple[Tensor, State]:
        u = drive(w, gradient, numbers, numbers.get("weight_decay", 0.0))
        after = self.observe(state or self.initial(w, numbers), u, numbers)
        rate, denominator = self._rate(after, numbers), self._denominator(after, numbers)
        if numbers.get("foreach") == 1:  # torch multiplies first there
            return w.addcdiv(u * -rate, denominator), after
        return w.addcdiv(u, denominator, value=-rate), after

    def _rate(self, state: State, numbers: Numbers) -> float:
        k = float(state["step"])
        return numbers["lr"] / (1 + (k - 1) * numbers.get("lr_decay", 0.0))

    def _denominator(self, state: State, numbers: Numbers) -> Tensor:
        return state["sum"].sqrt().add_(numbers["eps"])


RULES: dict[str, UpdateRule] = {  # by exact type: AdamW subclasses Adam
    "SGD": SGD(),
    "Adam": Adam(),
    "AdamW": Adam(),
    "RMSprop": RMSprop(),
    "Adagrad": Adagrad(),
}
