r"""The proof of a plan: which parameters are read rightly, shown on a pass that was run.

Three things are shown. The rows of a result that a reader takes are examples (see ``layout``). A
parameter's gradients add up to its plain gradient. Those of two examples are what their own
backward passes give. A parameter that fails takes the complete way, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from replay.gradients.forms.form import Form, for_products
from replay.gradients.forms.sum import added
from replay.gradients.operations.views import Node
from replay.gradients.proof.forward_pass import Choice, Pass, Plan, form_of
from replay.gradients.proof.layout import (
    FIRST,
    LAST,
    Layout,
    deviation,
    is_half,
    prove,
    random_factors,
    tolerance_of,
)
from replay.gradients.readers.reader import Reader, Shape

COMPLETE = "complete: "
_ROUNDED = 0.1  # of half-precision parameters: plain sums round as they go (LayerNorm's by 6 %)
_SHARE = 5.0  # times the rounding of one operation, in a whole gradient
_Layouts = dict[tuple[Node, Shape | None, int], tuple[Layout | None, bool]]


@dataclass(frozen=True)
class Proof:
    """What a pass showed.

    Attributes:
        plan: The covered parameters.
        certain: Whether it holds for later passes: every layout was the only one possible. Where
            gradients vanish, nothing is proven beyond this pass.
        forms: Gradients of the covered parameters.
        total: Plain gradients of all.
        paths: By parameter, its kinds of operation, or why it takes the complete way.
    """

    plan: Plan
    certain: bool
    forms: dict[str, Form]
    total: dict[str, Tensor]
    paths: dict[str, str]


@dataclass(frozen=True)
class _Trial:
    """One parameter read: its choices and gradients, or why not."""

    choices: list[Choice]
    form: Form
    certain: bool
    path: str
    tolerance: float = 0.0  # of the coarsest operation: under autocast not the parameter's


def prove_plan(found: Pass) -> Proof:
    """Find and prove the plan of a pass; its graph is kept."""
    names = list(found.parameters)
    candidates = {name: found.candidates(name) for name in names}
    readers = [reader for arrivals in candidates.values() for some in arrivals for reader in some]
    nodes = list({reader.node: None for reader in readers})
    total, deltas = found.backward(names, nodes, found.weights, retain=True)
    layouts = _layouts(found, readers, deltas)
    tried = {name: _read(found, name, candidates[name], deltas, layouts) for name in total}
    trials = {name: trial for name, trial in tried.items() if isinstance(trial, _Trial)}
    wrong = {name: why for name, why in tried.items() if isinstance(why, str)}
    wrong |= _wrong(found, trials, total)
    right = {name: trial for name, trial in trials.items() if name not in wrong}
    return Proof(
        {name: trial.choices for name, trial in right.items()},
        all(trial.certain for trial in right.values()) and len(total) == len(names),
        {name: trial.form for name, trial in right.items()},
        total,
        {name: wrong[name] if name in wrong else trials[name].path for name in total},
    )


def _layouts(found: Pass, readers: list[Reader], deltas: dict[Node, Tensor]) -> _Layouts:
    """Find layouts by one more backward, of which nothing is kept."""
    rounded = any(is_half(delta.dtype) for delta in deltas.values())
    factors = random_factors(len(found.losses), found.losses, rounded=rounded)
    by_node: dict[Node, set[tuple[Shape | None, int]]] = {}
    for one in readers:
        if one.node in deltas:
            by_node.setdefault(one.node, set()).add((one.shape, one.leading))
    layouts: _Layouts = {}

    def seen(node: Node, probe: Tensor) -> None:
        for shape, leading in by_node[node]:
            delta, probed = (x if shape is None else x.view(shape) for x in (deltas[node], probe))
            allowed = tolerance_of(delta.dtype)
            layouts[node, shape, leading] = prove(delta, probed, factors, leading, allowed)

    found.watch(list(by_node), found.weights * factors, seen)
    return layouts


def _read(
    found: Pass,
    name: str,
    arrivals: list[list[Reader]],
    deltas: dict[Node, Tensor],
    layouts: _Layouts,
) -> _Trial | str:
    """Read one parameter by the first reader of each arrival that has a layout; or say why not."""
    choices: list[Choice] = []
    forms: list[Form] = []
    kinds: list[str] = []
    own = found.parameters[name].dtype
    certain, tolerance = True, _ROUNDED if is_half(own) else tolerance_of(own)
    for arrival, readers in zip(found.graph.arrivals[name], arrivals, strict=True):
        if not readers:
            return f"{COMPLETE}used by {arrival.node.name().removesuffix('Backward0')}"
        for number, reader in enumerate(readers):
            key = (reader.node, reader.shape, reader.leading)
            layout, only = layouts.get(key, (None, False))
            if layout is not None:
                choices.append(Choice(number, layout))
                forms.append(form_of(reader, layout, deltas[reader.node], len(found.losses)))
                kinds.append(reader.kind)
                tolerance = max(tolerance, tolerance_of(deltas[reader.node].dtype))
                # any other layout depends on lengths, which the next pass may change
                certain &= only and layout in (FIRST, LAST)
                break
        else:
            return f"{COMPLETE}rows of its {readers[0].kind} operation are not examples"
    return _Trial(choices, added(forms), certain, ", ".join(dict.fromkeys(kinds)), tolerance)


def _wrong(found: Pass, trials: dict[str, _Trial], total: dict[str, Tensor]) -> dict[str, str]:
    """Return the parameters whose gradients are not what plain backward passes give, and why."""
    why = {}
    for name, trial in trials.items():
        whole = for_products(total[name]).reshape(trial.form.shape)
        scale = partial(_added, trial.form, trial.tolerance)
        if not _agree(trial.form.summed(), whole, trial.tolerance, scale):
            why[name] = f"{COMPLETE}its parts do not add up to the plain gradient"
    n, rest = len(found.losses), [name for name in trials if name not in why]
    for i in sorted({0, n // 2}) if rest else ():
        own = found.own(i, rest)
        for name in rest:
            form = trials[name].form
            row = row_of(form, i)
            if not _agree(row, own[name], trials[name].tolerance, partial(_usual, form)):
                why[name] = f"{COMPLETE}an example's part is not its own gradient"
    return why


def is_rounding(found: Pass, forms: dict[str, Form]) -> bool:
    """Return whether some parameters' gradients are right but for rounding, at all examples.

    Where they cancel (a norm over two values, a saturated softmax) they are mostly rounding of
    larger terms, in which nothing can be proven; so it counts as a share of the whole gradients.
    """
    nodes = [reader.node for name in forms for some in found.candidates(name) for reader in some]
    allowed = max(tolerance_of(node._input_metadata[0].dtype) for node in nodes)
    off = torch.zeros(len(found.losses), dtype=torch.float64, device="cpu")
    whole = torch.zeros_like(off)
    for i in range(len(off)):
        own = found.own(i, list(found.parameters))
        whole[i] = sum(float(g.double().square().sum()) for g in own.values())
        gaps = (deviation(row_of(form, i), own[name]) for name, form in forms.items())
        off[i] = sum(float(gap.double().square().sum()) for gap in gaps)
    return bool((off.sqrt() <= _SHARE * allowed * whole.clamp_min(whole.median()).sqrt()).all())


def row_of(form: Form, i: int) -> Tensor:
    """Return one example's gradient, flat."""
    chosen = torch.tensor([i], device=form.tensors[0].device)
    return form.select(chosen).dense(slice(0, form.shape[0]))[0]


def _added(form: Form, tolerance: float) -> float:
    """Return how large what is added up is, which may cancel while rounding is a share of it.

    Terms are kept in the dtype of the tolerance, the sum on its way at least in float32.
    """
    norms = torch.cat([term.squared_norms() for term in form.terms]).sqrt()
    on_its_way = min(1.0, tolerance_of(torch.float32) / tolerance)
    return float(norms.norm() + on_its_way * norms.sum())


def _usual(form: Form) -> float:
    """Return how large the terms of an example's gradient usually are; they may cancel."""
    return float(torch.stack([term.squared_norms() for term in form.terms]).sum(0).mean().sqrt())


def _agree(found: Tensor, expected: Tensor, tolerance: float, scale: Callable[[], float]) -> bool:
    """Return whether two gradients differ by no more than rounding, of theirs or of ``scale()``."""
    size, off = float(expected.norm()), float(deviation(found, expected).norm())
    if not math.isfinite(size):
        size = float(expected.masked_fill(~expected.isfinite(), 0).norm())
    if off <= tolerance * size:
        return True
    least = scale()
    return math.isfinite(least) and off <= tolerance * least
