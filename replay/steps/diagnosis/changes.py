"""What changes a gradient between backward and step, or adds to it."""

from __future__ import annotations

import math

from torch import Tensor

from replay.steps.diagnosis.case import Case, Cause, norms

_HALVINGS = 60
_TELLING = 0.05  # of the gradient's norm: what agrees in less proves nothing


def decay_in_the_loss(case: Case) -> Cause | None:
    """The objective had a penalty that the task has not: of squares or of magnitudes."""
    if not case.decides or (len(case.differing()) < 3 and case.gap(norms(case.plain)) < _TELLING):
        return None  # a number found from one norm and a factor from another prove nothing
    w = {n: case.now.before.parameters[n].double() for n in case.plain}
    for what in ("squares", "magnitudes"):
        pulls = w if what == "squares" else {n: v.sign() for n, v in w.items()}
        name = max(case.differing(), key=lambda n: case.observed[n], default="")
        if name not in pulls:
            continue
        for scale in _roots(case.plain[name], pulls[name], case.observed[name]):
            if _fits_with(case, pulls, scale):
                times = scale / 2 if what == "squares" else scale
                return Cause(
                    f"the loop added {times:.4g} times the sum of the parameters' {what} to the "
                    "loss (with it the step reproduces)",
                    (
                        "Give the task the same term: Task(penalty=lambda model: ...);",
                        "or use the optimizer's weight_decay.",
                    ),
                    "the-penalty",
                )
    return None


def _fits_with(case: Case, pulls: dict[str, Tensor], scale: float) -> bool:
    """Return whether each parameter has its norm with the term or, as biases often, without it."""
    found = {}
    for n, g in case.plain.items():
        options = [g.double().cpu() + scale * pulls[n], g.double().cpu()]
        wanted = case.observed.get(n, 0.0)
        off = [abs(float(x.norm()) - wanted) for x in options]
        found[n] = options[off.index(min(off))]
    return case.fits(found)


def _roots(gradient: Tensor, pull: Tensor, norm: float) -> list[float]:
    """Return the positive s for which ``‖gradient + s pull‖`` is a norm, the smaller first."""
    g = gradient.double().cpu()
    a, b = float(pull.square().sum()), float((g * pull).sum())
    inside = b * b - a * (float(g.square().sum()) - norm * norm)
    if not a or inside < 0:
        return []
    both = [(-b - math.sqrt(inside)) / a, (-b + math.sqrt(inside)) / a]
    return [s for s in both if s > 0]


def value_clipping(case: Case) -> Cause | None:
    """Each element was clamped."""
    differing = case.differing()
    if not differing or not case.decides:
        return None
    name = differing[0]
    gradient = case.plain.get(name)
    if gradient is None:
        return None
    low, high = 0.0, float(gradient.abs().max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = float(gradient.double().clamp(-middle, middle).norm()) > case.observed[name]
        low, high = (low, middle) if over else (middle, high)
    if not high or not case.fits({n: g.double().clamp(-high, high) for n, g in case.plain.items()}):
        return None
    return Cause(
        f"the elements of the gradient were clamped to {high:.4g} (so clamped, it has the norms "
        "of the run)",
        (
            "Clip by the norm instead: optimizer.clip_grad_norm_(...), which the log records;",
            "or go on with allow_mismatch=True: what clamping took off is rounding then.",
        ),
        "changed-gradients",
    )


def clipped_apart(case: Case) -> Cause | None:
    """Each parameter's gradient was clipped to a norm of its own."""
    found, differing = norms(case.plain), case.differing()
    reached = [case.observed[n] for n in differing]
    if len(differing) < 2 or max(reached) - min(reached) > case.share * max(reached):
        return None
    most = max(reached)
    if any(x > most * (1 + case.share) for x in case.observed.values()):
        return None
    if any(found.get(n, 0.0) < case.observed[n] for n in differing):
        return None
    clipped = {n: g * min(1.0, most / (found[n] or 1.0)) for n, g in case.plain.items()}
    if not case.fits(clipped):  # two norms may be alike for another reason
        return None
    return Cause(
        f"the gradient of each parameter was clipped by itself, to a norm of {most:.4g}",
        (
            "Clip all parameters of a group together: optimizer.clip_grad_norm_(...);",
            "or give each parameter a group of its own: one factor a group is found.",
        ),
        "changed-gradients",
    )


def some_parameters(case: Case) -> Cause | None:
    """Only some parameters differ: what was done to those alone."""
    differing = case.differing()
    agreeing = math.hypot(*(x for n, x in case.observed.items() if n not in differing))
    if not differing or agreeing < _TELLING * math.hypot(*case.observed.values()):
        return None
    silent = [n for n in differing if case.observed[n] == 0]
    shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
    count = f"{len(differing)} of {len(case.observed)} parameters differ ({shown})"
    if case.step.frozen.issuperset(differing):
        return Cause(
            f"{count}: they were frozen, and kept the gradient of an earlier step",
            (
                "Call optimizer.zero_grad() after freezing and before the step;",
                "or take frozen parameters out of the optimizer's groups.",
            ),
            "some-parameters",
        )
    if len(silent) == len(differing):
        return Cause(
            f"{count}, and their gradient was zero in the run: they were detached or cleared there",
            (
                "Freeze them in the model that the task builds: requires_grad_(False);",
                "or let task.loss detach what the loop detached.",
            ),
            "some-parameters",
        )
    return Cause(
        f"{count}; all others have the gradient of the run",
        (
            "Look for what touches these alone: a penalty, clipping, a hook, another optimizer;",
            "let task.loss or Task(penalty=...) do what the loop does to them.",
        ),
        "some-parameters",
    )
