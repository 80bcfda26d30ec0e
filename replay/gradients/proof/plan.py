r"""The proof of a plan: which parameters are read rightly, shown on a pass that was run.

Three things are shown. The rows of a result that a reader takes are examples (see ``layout``). A
parameter's gradients add up to its plain gradient. So they do when each is multiplied with its own
random number; where rounding hides that, those of two examples are what their own backward passes
give. A parameter that fails takes the complete way, with the reason. What is zero shows nothing,
and is marked as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from operator import add

import torch
from torch import Tensor

from replay.gradients.forms.form import Form, for_products
from replay.gradients.forms.sum import added
from replay.gradients.operations.views import Node
from replay.gradients.proof.agreement import (
    SHARE,
    adds_up,
    agree,
    allowed,
    dense,
    not_adding_up,
    repeats,
    usual_size,
)
from replay.gradients.proof.forward_pass import (
    Choice,
    Chosen,
    Pass,
    Plan,
    SpentGraph,
    form_of,
    magnitudes,
)
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
NO_SUM = "its parts do not add up to the plain gradient"
_LOUD = 2.0**30  # multiplies exactly, and shows what a hook does to large gradients only
_Layouts = dict[tuple[Node, Shape | None, int], tuple[Layout | None, bool]]


@dataclass(frozen=True)
class Proof:
    """What a pass showed.

    Attributes:
        ways: The covered parameters.
        certain: Whether it holds for later passes: every layout was the only one possible.
        forms: Gradients of the covered parameters.
        total: Plain gradients of all.
        paths: By parameter, its kinds of operation, or why it takes the complete way.
    """

    ways: Chosen
    certain: bool
    forms: dict[str, Form]
    total: dict[str, Tensor]
    paths: dict[str, str]

    @cached_property
    def plan(self) -> Plan:
        """What later passes can be read by."""
        return {name: [choice for _, choice in some] for name, some in self.ways.items()}


@dataclass(frozen=True)
class _Trial:
    """One parameter read: its choices and gradients, or why not."""

    ways: list[tuple[Reader, Choice]]
    form: Form
    summed: Tensor
    large: Callable[[], Form]  # read of the magnitudes of output gradients
    certain: bool
    path: str
    tolerance: float


def prove_plan(found: Pass) -> Proof:
    """Find and prove the plan of a pass; its graph is kept.

    Raises:
        SpentGraph: A backward pass does not give the same as before.
    """
    names = list(found.parameters)
    candidates = {name: found.candidates(name) for name in names}
    readers = [reader for arrivals in candidates.values() for some in arrivals for reader in some]
    nodes = list({reader.node: None for reader in readers})
    total, deltas = found.backward(names, nodes, found.weights, retain=True)
    rounded = any(is_half(delta.dtype) for delta in deltas.values())
    factors = random_factors(len(found.losses), found.losses, rounded=rounded)
    factors *= 1.0 if rounded else _LOUD
    layouts, mixed = _layouts(found, names, readers, deltas, factors)
    tried = {name: _read(found, name, candidates[name], deltas, layouts) for name in total}
    trials = {name: trial for name, trial in tried.items() if isinstance(trial, _Trial)}
    wrong = {name: why for name, why in tried.items() if isinstance(why, str)}
    vague = list(trials) if rounded else _vague(trials, mixed, factors)
    wrong |= _wrong(found, trials, total, vague, 1.0 if rounded else _LOUD)
    if wrong and not found.once and not repeats(found, total, list(wrong)):
        raise SpentGraph(found.where)
    right = {name: trial for name, trial in trials.items() if name not in wrong}
    return Proof(
        {name: trial.ways for name, trial in right.items()},
        all(trial.certain for trial in right.values()) and len(total) == len(names),
        {name: trial.form for name, trial in right.items()},
        total,
        {name: wrong[name] if name in wrong else trials[name].path for name in total},
    )


def _layouts(
    found: Pass,
    names: list[str],
    readers: list[Reader],
    deltas: dict[Node, Tensor],
    factors: Tensor,
) -> tuple[_Layouts, dict[str, Tensor]]:
    """Find layouts by one more backward, and plain gradients of ``Σ r_i c_i ℓ_i``."""
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

    mixed = found.watch(names, list(by_node), found.weights * factors, seen, retain=True)
    return layouts, mixed


def _read(
    found: Pass,
    name: str,
    arrivals: list[list[Reader]],
    deltas: dict[Node, Tensor],
    layouts: _Layouts,
) -> _Trial | str:
    """Read one parameter by the first reader of each arrival that has a layout; or say why not."""
    n, certain = len(found.losses), True
    ways: list[tuple[Reader, Choice]] = []
    chosen: list[tuple[Reader, Layout, Tensor]] = []
    sums: list[Tensor] = []
    forms: list[Form] = []
    for arrival, readers in zip(found.graph.arrivals[name], arrivals, strict=True):
        if not readers:
            return f"{COMPLETE}used by {arrival.node.name().removesuffix('Backward0')}"
        for number, reader in enumerate(readers):
            key = (reader.node, reader.shape, reader.leading)
            layout, only = layouts.get(key, (None, False))
            if layout is not None:
                delta = deltas[reader.node]
                chosen.append((reader, layout, delta))
                forms.append(form_of(reader, layout, delta, n))
                sums.append(forms[-1].summed())
                shown = bool(sums[-1].any()) and _are_several(reader, layout, delta, n)
                ways.append((reader, Choice(number, layout, shown)))
                # any other layout depends on lengths, which the next pass may change
                certain &= only and layout in (FIRST, LAST)
                break
        else:
            return f"{COMPLETE}rows of its {readers[0].kind} operation are not examples"
    path = ", ".join(dict.fromkeys(reader.kind for reader, _, _ in chosen))
    tolerance = allowed(found.parameters[name], [delta for _, _, delta in chosen])
    large = partial(magnitudes, chosen, n)
    return _Trial(ways, added(forms), reduce(add, sums), large, certain, path, tolerance)


def _are_several(reader: Reader, layout: Layout, delta: Tensor, n: int) -> bool:
    """Return whether output gradients of two examples, if there are two, are not zero."""
    seen = delta.detach() if reader.shape is None else delta.detach().view(reader.shape)
    rows = layout.arrange(seen, reader.leading, n).flatten(1)
    return int(rows.any(1).sum()) >= min(n, 2)


def _vague(trials: dict[str, _Trial], mixed: dict[str, Tensor], factors: Tensor) -> list[str]:
    """Return the parameters whose parts, each times ``r_i``, do not clearly add up to ``mixed``."""
    forms = {name: trial.form for name, trial in trials.items()}
    finely = {name: trial.tolerance / len(factors) ** 0.5 for name, trial in trials.items()}
    return not_adding_up(forms, mixed, finely, factors)


def _wrong(
    found: Pass,
    trials: dict[str, _Trial],
    total: dict[str, Tensor],
    vague: list[str],
    loud: float,
) -> dict[str, str]:
    """Return the parameters whose gradients are not what plain backward passes give, and why."""
    why = {}
    for name, trial in trials.items():
        whole = for_products(dense(total[name])).reshape(trial.form.shape)
        if not adds_up(trial.form, trial.summed, whole, trial.tolerance, trial.large):
            why[name] = COMPLETE + NO_SUM
    rest = [name for name in vague if name not in why]
    weighty = found.weights.nonzero()[:, 0].tolist() or [0]
    for i in sorted({weighty[0], weighty[len(weighty) // 2]}) if rest else ():
        own = found.own(i, rest, loud)
        for name in rest:
            trial = trials[name]
            scales = partial(usual_size, trial.form), lambda trial=trial: usual_size(trial.large())
            if not agree(row_of(trial.form, i), own[name], trial.tolerance, *scales):
                why[name] = f"{COMPLETE}an example's part is not its own gradient"
    return why


def is_rounding(found: Pass, forms: dict[str, Form]) -> bool:
    """Return whether some parameters' gradients are right but for rounding, at all examples.

    Where they cancel (a norm over two values, a saturated softmax) they are mostly rounding of
    larger terms, in which nothing can be proven; so it counts as a share of the whole gradients.
    """
    nodes = [reader.node for name in forms for some in found.candidates(name) for reader in some]
    coarsest = max(tolerance_of(node._input_metadata[0].dtype) for node in nodes)
    off = torch.zeros(len(found.losses), dtype=torch.float64, device="cpu")
    whole = torch.zeros_like(off)
    for i in range(len(off)):
        own = found.own(i, list(found.parameters))
        whole[i] = sum(float(g.double().square().sum()) for g in own.values())
        gaps = (deviation(row_of(form, i), own[name]) for name, form in forms.items())
        off[i] = sum(float(gap.double().square().sum()) for gap in gaps)
    return bool((off.sqrt() <= SHARE * coarsest * whole.clamp_min(whole.median()).sqrt()).all())


def row_of(form: Form, i: int) -> Tensor:
    """Return one example's gradient, flat."""
    chosen = torch.tensor([i], device=form.tensors[0].device)
    return form.select(chosen).dense(slice(0, form.shape[0]))[0]
