"""Parameters that another thing than the step moved, though its gradient is the run's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replay.evaluate.state import State, Transition
from replay.steps.diagnosis.case import Case, Cause

_ANCHOR = "changed-parameters"
_STATES, _BYTES = 200, 4 << 30  # earlier ones that are looked at, at most


def forward_writes(case: Case) -> Cause | None:
    """The forward pass itself writes into a parameter."""
    now, t = case.now, case.step.index
    after = State({**now.after.parameters, **_wanted(case)}, now.after.buffers)
    following = case.states.step(min(t + 1, case.states.last - 1))
    written = None
    for one in (now, Transition(following, after, after)):
        if case.at(one, case.task, one.step):
            held = {n: p.detach().cpu() for n, p in case.bound.parameters.items()}
            before = one.before.parameters
            changed = (n for n, w in before.items() if not torch.equal(held[n], w.to(held[n])))
            written = written or next(changed, None)
    if written is None:
        return None
    return Cause(
        f"the forward pass writes into {written!r}, as Embedding(max_norm=...) does, so that not "
        "the optimizer alone moved it",
        (
            "Let the forward use a normalised copy: a parametrization, or F.normalize of the rows;",
            "or go on with allow_mismatch=True: what the forward wrote is rounding then.",
        ),
        _ANCHOR,
    )


def put_back(case: Case) -> Cause | None:
    """The parameters after the step are those of an earlier one."""
    after, t = case.now.after.parameters, case.step.index
    name = largest(case.rest)
    size = sum(w.nbytes for w in after.values())
    for k in range(t, max(-1, t - min(_STATES, _BYTES // size)), -1):
        if torch.equal(case.states.at(k).parameters[name], after[name]):
            last = t + 1 == case.states.last
            when = "before the log was closed" if last else "after it"
            return Cause(
                f"the weights from before step {k} were put back {when} (best weights, "
                "load_state_dict)",
                (
                    f"Ask for the steps before it: {_before(t)};",
                    "or close the log (optimizer.close()) before weights are put back.",
                )
                if last
                else (
                    "Trace the part after it as a run with a log of its own;",
                    f"or ask for the steps before it: {_before(t)}.",
                ),
                _ANCHOR,
            )
    return None


def clamped(case: Case) -> Cause | None:
    """The parameters were clamped after the step."""
    ends = []
    for name, w in _wanted(case).items():
        after = case.now.after.parameters[name].double()
        low, high, most = after.min(), after.max(), case.share * float(after.abs().max())
        if not float((w.clamp(low, high) - after).abs().max()) <= most:
            return None
        if float((w - after).abs().max()) > most:
            ends += [-float(low), float(high)]
    if not ends:
        return None
    return Cause(
        f"parameters were clamped after the step, to {max(ends):.4g} at most",
        (
            "Clamp inside the model instead: a parametrization, or clamp where weights are used;",
            "or go on with allow_mismatch=True: what clamping moved is rounding then.",
        ),
        _ANCHOR,
    )


def decayed(case: Case) -> Cause | None:
    """The parameters were shrunk beside the step."""
    rests = {n: r.double().cpu() for n, r in case.rest.items()}
    wanted, name = _wanted(case), largest(rests)
    share = float(
        (wanted[name] * rests[name]).sum() / wanted[name].square().sum().clamp_min(1e-300)
    )
    size = float(rests[name].norm())
    for n, rest in rests.items():  # biases may be left out
        off = min(float((rest - share * wanted[n]).norm()), float(rest.norm()))
        if not off <= 0.02 * size or not share > 0:
            return None
    return Cause(
        f"parameters were shrunk by {share:.4g} of themselves beside the step",
        (
            "Use the optimizer's weight_decay, or AdamW, which the replay knows;",
            "or go on with allow_mismatch=True: the decay is rounding then.",
        ),
        _ANCHOR,
    )


def cleared(case: Case) -> Cause | None:
    """The optimizer began anew: without momentum, second moments and counts."""
    rest = case.anew()
    known = math.hypot(*(float(r.double().norm()) for r in case.rest.values()))
    if not rest or math.hypot(*(float(r.double().norm()) for r in rest.values())) > 0.01 * known:
        return None
    return Cause(
        "the optimizer's state was cleared before the step (from none, the step reproduces)",
        (
            "Trace what follows a cleared state, or another optimizer, as a run with its own log;",
            f"or ask for the steps before it: {_before(case.step.index)}.",
        ),
        "changed-state",
    )


def of_another(case: Case) -> Cause | None:
    """What moved is none of the optimizer's parameters at this step."""
    name = largest(case.rest)
    if name in case.step.moved:
        return None
    return Cause(
        f"something beside the wrapped optimizer moved {name!r}: a second optimizer, or weights "
        "that were averaged or swapped",
        (
            "Wrap both together: TracingOptimizer([first, second], model, log);",
            "or go on with allow_mismatch=True: what the other moved is rounding then.",
        ),
        _ANCHOR,
    )


def only_the_last(case: Case) -> Cause | None:
    """Nothing but the last step differs: what came between it and ``close()``."""
    if case.step.index + 1 != case.states.last or case.states.last == 1:
        return None
    return Cause(
        "this is the last step, and all before it reproduce: parameters were changed between it "
        "and close() (best or averaged weights)",
        (
            f"Ask for the steps before it: {_before(case.step.index)};",
            "or close the log (optimizer.close()) before weights are exchanged.",
        ),
        _ANCHOR,
    )


def _before(t: int) -> str:
    return f'steps="0:{t}" (--steps 0:{t})'


def _wanted(case: Case) -> dict[str, Tensor]:
    """Return where the step alone would have led, float64."""
    after = case.now.after.parameters
    return {n: after[n].double() + rest.double().cpu() for n, rest in case.rest.items()}


def largest(rests: dict[str, Tensor]) -> str:
    """Return the parameter of which most is left."""
    return max(rests, key=lambda n: float(rests[n].abs().max()))
