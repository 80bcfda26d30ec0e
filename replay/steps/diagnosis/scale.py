"""Gradients that are the replayed ones times a number, or their examples' times some."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from replay.steps.diagnosis.case import Case, Cause, added, norms
from tracer.errors import shown
from tracer.records import Step

_ANCHOR = "reduction-and-weights"
_UNLIKE = 0.1  # what is left of a gradient that is no such sum, at least
_EXAMPLES, _COORDINATES = 64, 20_000  # that a system of equations is made of, at most


def a_count(case: Case) -> Cause | None:
    """Every gradient is the replayed one times a number of examples or of micro-batches."""
    ratio = _ratio(case)
    k, sizes = len(case.step.micro_batches), {len(m.ids) for m in case.step.micro_batches}
    b = sizes.pop() if len(sizes) == 1 else 0
    shown = f"each norm in the run is {ratio:.6g} times the replayed one"
    if k > 1 and _near(ratio, k, case):
        return Cause(
            f"the losses of the {k} micro-batches were not divided by their number ({shown})",
            (
                f"Divide the loss by {k} before backward(), which makes a mean;",
                "or say what stood before each loss: observe(ids, weights=...).",
            ),
            _ANCHOR,
        )
    if b > 1 and (_near(ratio, b, case) or _near(ratio, b * k, case)):
        return Cause(
            "the loop summed the losses of a batch, and the log was told that it takes their mean "
            f"({shown}, and a batch has {b} examples)",
            (
                'Trace with reduction="sum";',
                "or train on the mean of the losses.",
            ),
            _ANCHOR,
        )
    return None


def one_factor(case: Case) -> Cause | None:
    """Every parameter's gradient is the replayed one times the same number."""
    ratio = _ratio(case)
    if not ratio:
        return None
    return Cause(
        f"the loss in the run was {ratio:.6g} times the task's, as each norm is",
        (
            "Return from task.loss what the loop makes the mean of, factor and all;",
            "or say what stood before each loss: observe(ids, weights=...).",
        ),
        _ANCHOR,
    )


def no_zero_grad(case: Case) -> Cause | None:
    """The gradient of the step before was still there."""
    t = case.step.index
    if t == 0:
        return None
    earlier = case.states.transition(t - 1)
    before = case.at(earlier, case.task, earlier.step)
    if not before or not case.fits(added(case.plain, before)):
        return None
    return Cause(
        f"the gradient of step {t - 1} was still there (it and this step's add up to the run's)",
        (
            "Call optimizer.zero_grad() before each step's backward();",
            "or, if the two are one step of accumulation, observe(ids) each and step() once.",
        ),
        _ANCHOR,
    )


def weighted(case: Case) -> Cause | None:
    """The gradient is the sum of these examples', with other weights; or no such sum."""
    step, solved = case.step, _solved(case)
    if solved is None:
        return None
    weights, off = solved
    if off > _UNLIKE:
        return Cause(
            "the run's gradient is no sum of these examples' gradients, however weighted: other "
            "examples had a part in it, or their order, their data or the loss were others",
            (
                "Call observe(ids) after each micro-batch's backward(), with its own IDs;",
                'if data are augmented at random, trace with record="batches" and '
                "step(batch_ids=ids, batch=batch);",
                "compare data, keys and loss of the task with the loop's, one batch by hand.",
            ),
            "the-task",
        )
    logged = torch.cat([m.coefficients for m in step.micro_batches])
    ratio = (weights / logged).tolist()
    low, high = min(ratio), max(ratio)
    if low < -0.01 * high:  # as many examples as directions: such weights fit to anything
        return None
    if high - low < 0.02 * abs(high) or not case.fits(case.replayed(step=_with(step, weights))):
        return None
    absent = [step.batch_ids[i] for i, r in enumerate(ratio) if abs(r) < 0.01 * abs(high)]
    if absent:
        first = shown(absent[0])
        text = f"{len(absent)} examples of the batch had no part in the run, {first} first"
    else:
        text = f"examples were weighted, from {low:.3g} to {high:.3g} times their share of a mean"
    return Cause(
        f"{text} (the run's gradient is such a sum of these examples' gradients)",
        (
            "Say what stood before each loss: observe(ids, weights=...), class weights and all;",
            "or let task.loss return the loop's own loss of each example, weights and all.",
        ),
        _ANCHOR,
    )


def _solved(case: Case) -> tuple[Tensor, float] | None:
    """Return the weights with which the examples' gradients come nearest, and what is left."""
    found = {n: u for n, u in case.applied.items() if n in case.plain}
    count = len(case.step.batch_ids)
    if not found or count > _EXAMPLES or case.task.penalty is not None:
        return None
    rows = [_picked(_alone(case, i), found) for i in range(count)]
    target = _picked(found, found)
    if not all(len(row) for row in rows) or len(target) < 2 * count:
        return None  # any gradient would be such a sum
    matrix = torch.stack(rows, 1)
    weights = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]
    return weights, float((matrix @ weights - target).norm() / target.norm())


def _alone(case: Case, i: int) -> dict[str, Tensor]:
    """Return the gradient of the loss of occurrence ``i``, within its batch."""
    alone = torch.eye(len(case.step.batch_ids), dtype=torch.float64)[i]
    return case.replayed(step=_with(case.step, alone))


def _with(step: Step, weights: Tensor) -> Step:
    """Return a step with other weights of its occurrences."""
    parts = torch.split(weights, [len(micro.ids) for micro in step.micro_batches])
    pairs = zip(step.micro_batches, parts, strict=True)
    return replace(step, micro_batches=tuple(replace(m, coefficients=c) for m, c in pairs))


def _picked(gradient: dict[str, Tensor], names: dict[str, Tensor]) -> Tensor:
    """Return some coordinates of a gradient, float64."""
    if not gradient:
        return torch.zeros(0, dtype=torch.float64)
    flat = [gradient.get(n, torch.zeros_like(v)).double().cpu().flatten() for n, v in names.items()]
    whole = torch.cat(flat)
    return whole[:: max(1, len(whole) // _COORDINATES)]


def _ratio(case: Case) -> float:
    """Return by what all norms differ; 0 if by several factors."""
    found = norms(case.plain)
    size = sum(found.get(n, 0.0) * x for n, x in case.observed.items())
    ratio = size / (sum(found.get(n, 0.0) ** 2 for n in case.observed) or 1.0)
    alike = case.fits({n: ratio * g for n, g in case.plain.items()})
    return ratio if alike and len(case.observed) > 1 else 0.0


def _near(ratio: float, number: int, case: Case) -> bool:
    return abs(ratio - number) <= max(case.share, 1e-6) * number
