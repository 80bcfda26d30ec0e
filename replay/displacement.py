r"""What one step was made of, and whether it is the step that was logged.

    Δ_t = w_t − w_{t+1} = data + regulariser + rounding

with, for plain SGD (torch.optim.SGD with momentum 0),

    data = η_t Σ c_i g_i,    regulariser = η_t (wd w_t + ∇penalty),

per parameter group, and ``rounding`` what is left. A remainder beyond rounding error means that
the replayed step is not the one that was run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.trajectory import Transition
from tracer.errors import MismatchError, UnsupportedRuleError
from tracer.records import Step

Vector = dict[str, Tensor]  # by parameter, float64

_LATER = (
    "this version splits plain SGD steps (momentum 0, with or without weight decay); "
    "tracincp and the measured drops (Replay.drops) work for every optimizer."
)


@dataclass(frozen=True)
class Rate:
    """Learning rate and weight decay of one parameter at one step."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Displacement:
    """``Δ_t`` in parts, each a float64 vector by parameter."""

    data: Vector
    regulariser: Vector
    rounding: Vector

    @property
    def parts(self) -> list[Vector]:
        """The three parts, in order; their sum is ``Δ_t``."""
        return [self.data, self.regulariser, self.rounding]

    def norm(self) -> float:
        """Return ``‖Δ_t‖``."""
        names = {name for part in self.parts for name in part}
        sums = (sum(part[n] for part in self.parts if n in part) for n in names)
        return math.sqrt(sum(float(torch.as_tensor(s).square().sum()) for s in sums))


def plain_sgd_rates(step: Step, update_rule: str) -> dict[str, Rate]:
    """Return the rate of every parameter that the step moved.

    Raises:
        UnsupportedRuleError: The step is not one of plain SGD; names the rule.
    """
    where = f"step {step.index}"
    if update_rule != "SGD":
        raise UnsupportedRuleError(
            f"{where} was made by {update_rule}, whose update cannot be split yet: {_LATER}"
        )
    if step.clip_factor < 1:
        raise UnsupportedRuleError(
            f"{where} clipped its gradient (factor {step.clip_factor:.4g}), which cannot be "
            f"split yet: {_LATER}"
        )
    rates = {}
    for group in step.groups:
        numbers = group.hyperparameters
        for option in ("momentum", "maximize"):
            if numbers.get(option, 0.0):
                raise UnsupportedRuleError(
                    f"{where} was made by SGD with {option}={numbers[option]:g}, which cannot "
                    f"be split yet: {_LATER}"
                )
        rate = Rate(numbers["lr"], numbers.get("weight_decay", 0.0))
        for name in group.names:
            if name not in step.without_gradient and name not in step.frozen:
                rates[name] = rate
    return rates


def split(
    transition: Transition, rates: dict[str, Rate], gradient: Vector, penalty: Vector
) -> Displacement:
    """Divide ``Δ_t`` into what data, regulariser and rounding moved.

    Args:
        transition: The logged step.
        rates: Of every parameter that it moved.
        gradient: ``Σ c_i g_i``, recomputed; absent parameters are zero.
        penalty: Gradient of ``task.penalty``, likewise.
    """
    before, after = transition.before.parameters, transition.after.parameters
    data: Vector = {}
    regulariser: Vector = {}
    rounding: Vector = {}
    for name, w in before.items():
        rest = w.double() - after[name].double()
        rate = rates.get(name)
        if rate is not None and name in gradient:
            data[name] = rate.learning_rate * gradient[name].double().cpu()
            rest = rest - data[name]
        if rate is not None and (rate.weight_decay or name in penalty):
            pull = rate.weight_decay * w.double()
            if name in penalty:
                pull = pull + penalty[name].double().cpu()
            regulariser[name] = rate.learning_rate * pull
            rest = rest - regulariser[name]
        rounding[name] = rest
    return Displacement(data, regulariser, rounding)


def check(
    transition: Transition,
    rates: dict[str, Rate],
    found: Displacement,
    *,
    path: str,
    same_dtype: bool,
) -> None:
    """Compare the replayed step with the logged one, in gradient units.

    Allowed, of the norm of the whole gradient: 1e-9 in float64, 1e-4 in float32, 5e-2 in half
    precision (1e-2 more where the replay runs in another dtype than the run), plus 4 units in
    the last place of the parameter.

    Raises:
        MismatchError: Names the step, the parameter and what to look at.
    """
    norm = _gradient_norm(rates, found.data, found.regulariser)
    for name, rest in found.rounding.items():
        w, moved = transition.before.parameters[name], transition.after.parameters[name]
        dtype = w.dtype
        largest = torch.maximum(w.abs(), moved.abs()).double()
        allowed = 4 * torch.finfo(dtype).eps * largest if dtype.is_floating_point else 0 * rest
        if name in rates:
            share = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 5e-2)
            share += 0.0 if same_dtype else 1e-2
            allowed = allowed + share * abs(rates[name].learning_rate) * norm
        if bool((rest.abs() <= allowed).all()):
            continue
        data = _gradient_norm(rates, found.data)
        raise MismatchError(_mismatch(transition, name, rates.get(name), rest, norm, data, path))


def _gradient_norm(rates: dict[str, Rate], *parts: Vector) -> float:
    squares = 0.0
    for name, rate in rates.items():
        if rate.learning_rate:
            whole = sum(part[name] for part in parts if name in part)
            squares += float(torch.as_tensor(whole).square().sum()) / rate.learning_rate**2
    return math.sqrt(squares)


def _mismatch(
    transition: Transition,
    name: str,
    rate: Rate | None,
    rest: Tensor,
    norm: float,
    data: float,
    path: str,
) -> str:
    step = transition.step
    where = f"step {step.index} of {path} does not reproduce"
    ending = "allow_mismatch=True (--allow-mismatch) goes on and counts the difference as rounding."
    if rate is None:
        return (
            f"{where}: parameter {name!r} was not in the step (frozen, without gradient or in no "
            f"group), but moved by up to {rest.abs().max():.3g} before the next one; was it "
            f"changed between steps (clamped, averaged, swapped)? {ending}"
        )
    size = float(rest.norm()) / max(abs(rate.learning_rate), 1e-300)
    relative = size / norm if norm else math.inf
    hint = ""
    if norm and 0 < step.gradient_norm < 0.999 * data:
        hint = (
            f" The gradient as applied had the norm {step.gradient_norm:.4g}, the replayed one "
            f"{data:.4g}: was it clipped outside the optimizer?"
        )
    return (
        f"{where}: the replayed gradient and the logged change of {name!r} differ by "
        f"{relative:.2g} of the gradient's norm.{hint} Look at the task (loss, model, data, order, "
        "collate), at autocast, at clipping, at parameters changed between steps (clamped, "
        "averaged, swapped), and at randomness outside the model: if training examples are "
        'augmented at random, trace with record="batches" and step(batch_ids=ids, batch=batch), '
        f"which logs the batches themselves. {ending}"
    )
