"""Whether ``φ`` is one function of what was loaded: asked of a few examples at a few states.

It is none where data, collate or the model draw at random, where the pass that takes gradients
computes something else, and where a model keeps what it made of earlier weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from replay.evaluate.binding import BoundModel
from replay.evaluate.companies import Company
from replay.evaluate.state import State
from replay.evaluate.test_side import Examples
from replay.gradients.proof.layout import tolerance_of
from tracer.errors import TaskError, shown

_FEW = 5  # examples whose gradients are compared
_AGAIN = 4  # times that an example is loaded, collated, evaluated again


def have_same_values(examples: Examples, state: State, where: str, company: Company) -> bool:
    """Return whether values of all examples are the same in other company.

    Raises:
        TaskError: They are random, or those of another function where gradients are taken.
    """
    joint, bound = examples.values(state, where), examples.models.value
    require_same_value(examples, bound, examples.plain(bound, [0], where), where)
    if len(examples) == 1:
        examples.in_float64(where, lambda: require_same_pass(examples, bound, joint, where))
        return True
    found = ((some, examples.plain(bound, some, where)) for some in company)
    return all(bound.is_close(values, joint[some]) for some, values in found)


def have_same_gradients(examples: Examples, state: State, where: str) -> bool:
    """Return whether gradients of a few examples, and values there, are the same in other company.

    Raises:
        TaskError: They are gradients of another function.
    """
    n = len(examples)
    few = sorted({k * (n - 1) // (_FEW - 1) for k in range(_FEW)})
    joint, bound = examples.values(state, where, few), examples.models.value
    if examples.agree(state, where, few, joint):
        return True
    examples.in_float64(where, lambda: require_same_pass(examples, bound, joint, where, few))
    return False


def _require_own(examples: Examples, bound: BoundModel, where: str) -> None:
    """Raise TaskError if a copy uses parameters of another one."""
    strangers = examples.models.strangers(bound)
    with torch.enable_grad():
        found = leaves(examples.losses(bound, [0], where))
    shared = next((strangers[key] for key in found if key in strangers), None)
    if shared is not None:
        raise TaskError(
            f"{where}: {examples.called} uses parameter {shared!r} of another copy of the model; "
            "build all that the model uses in task.model()."
        )


def require_same_data(examples: Examples) -> None:
    """Raise TaskError if loading or collating a few examples again gives other data."""
    for k in range(_AGAIN):
        examples.batches.require_same(k % len(examples))


def require_same_value(examples: Examples, bound: BoundModel, alone: Tensor, where: str) -> None:
    """Raise TaskError if the first example has another value the second time."""
    again = examples.plain(bound, [0], where)
    if not bound.is_close(again, alone):
        raise TaskError(
            f"{where}: {examples.called} of example {shown(examples.ids[0])} gave "
            f"{alone.item():.9g} and then {again.item():.9g}: it is random in eval mode.\n"
            "  1. Let eval() reach every dropout: a train method of your own must call super().\n"
            "  2. Draw no random numbers (torch, numpy, random) unless self.training."
        )


def require_same_pass(
    examples: Examples,
    bound: BoundModel,
    values: Tensor,
    where: str,
    columns: Sequence[int] | None = None,
) -> None:
    """Raise TaskError if the pass whose gradients are taken has other values than without them."""
    chosen = list(range(len(examples)) if columns is None else columns)
    with torch.enable_grad():
        losses = examples.tracked(bound, chosen, where)
    found = losses.detach().double()
    if not bound.is_close(found, values):
        j = int((found - values).abs().argmax())
        raise TaskError(
            f"{where}: {examples.called} of example {shown(examples.ids[chosen[j]])} is "
            f"{found[j].item():.9g} where gradients are taken and {values[j].item():.9g} without "
            "them: they are gradients of another function.\n"
            "  1. Let the forward not depend on torch.is_grad_enabled() or "
            "torch.is_inference_mode_enabled(); ask self.training.\n"
            "  2. Let it keep nothing from pass to pass (caches, counters)."
        )


def settle(examples: Examples, first: State, last: State, where: str) -> None:
    """Find how the copies go into eval mode, on one example, where weights have moved.

    Raises:
        TaskError: What is evaluated are not the weights that were loaded, or it is random.
    """
    bound = examples.models.value
    require_same_data(examples)
    _choose_mode(examples, bound, last, where)
    bound.load_for_eval(last)
    _require_always_same(examples, bound, where)
    examples.in_float64(where, lambda: _require_own(examples, bound, where))
    _require_no_memory(examples, first, last, where)


def _require_always_same(examples: Examples, bound: BoundModel, where: str) -> None:
    value = examples.plain(bound, [0], where)
    for _ in range(_AGAIN):  # what is drawn of few numbers may be the same by chance
        require_same_value(examples, bound, value, where)


def _choose_mode(examples: Examples, bound: BoundModel, state: State, where: str) -> None:
    mode, models = bound.eval_mode, examples.models
    mode.flags_only = False
    bound.module.train()
    bound.load(state.parameters, state.buffers)
    changed, kept = mode.changes({**state.parameters, **state.buffers}), mode.kept()
    value = examples.plain(bound, [0], where)
    for one in (models.train, models.test, models.value):
        one.eval_mode.anew = bool(mode.renewed(kept))
        one.eval_mode.flags_only = bool(changed)
    if changed and not _is_same_by_flags(examples, bound, state, value, where):
        raise TaskError(
            f"{where}: eval() changes {', '.join(map(repr, changed[:3]))} of the model, so "
            "gradients cannot be taken of the weights that were loaded.\n"
            "  1. Return a model from task.model() that does not merge (LoRA: "
            "merge_weights=False).\n"
            "  2. Or compute it in the forward, from the parameters, unless it is known."
        )


def _require_no_memory(examples: Examples, first: State, last: State, where: str) -> None:
    """Raise TaskError if a model that has been at another state has another value.

    Each of two copies is evaluated at the last state, one of them after the first state.
    """
    seen, fresh = examples.models.test, examples.models.train
    seen.load_for_eval(first)
    examples.plain(seen, [0], where)
    values = []
    for bound in (seen, fresh):
        bound.load_for_eval(last)
        values.append(examples.plain(bound, [0], where))
    kind = max(map(tolerance_of, {p.dtype for p in seen.moving().values()}), default=0.0)
    gap = (values[0] - values[1]).abs()
    if bool((gap > kind * (1 + values[1].abs())).any()):
        for bound in (seen, fresh):
            _require_always_same(examples, bound, where)
        names = list(seen.eval_mode.kept())
        raise TaskError(
            f"{where}: {examples.called} of example {shown(examples.ids[0])} is "
            f"{values[0].item():.9g} in a model that was at step 0 before, "
            f"{values[1].item():.9g} in a fresh one: it keeps what "
            f"it made of earlier weights ({', '.join(names[:3]) or 'unknown where'}).\n"
            "  1. Drop that in the model's train method, which is called before a state is loaded."
            "\n  2. Or keep nothing: compute it from the parameters in each forward."
        )


def _is_same_by_flags(
    examples: Examples, bound: BoundModel, state: State, value: Tensor, where: str
) -> bool:
    try:
        bound.load_for_eval(state)
        if any(now is not bound.parameters.get(n) for n, now in bound.module.named_parameters()):
            return False
        return bound.is_close(examples.plain(bound, [0], where), value)
    except Exception:  # a forward that needs what eval() makes
        return False


def leaves(losses: Tensor) -> dict[int, Tensor]:
    """Return the leaves of a graph."""
    waiting, seen, found = [losses.grad_fn], set(), {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        waiting += [child for child, _ in node.next_functions]
    return found
