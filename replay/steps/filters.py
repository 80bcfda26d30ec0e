"""How a step moves each parameter, by its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from replay.steps.effective_gradient import EffectiveGradient
from replay.steps.optimizer_state import OptimizerState
from replay.vectors.blocks import total
from tracer.errors import UnsupportedRuleError
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


def filters_of(
    where: str,
    rules: Mapping[str, UpdateRule],
    numbers: Mapping[str, Numbers],
    gradients: Mapping[str, EffectiveGradient],
    sparse: Mapping[str, Tensor],
    optimizer: OptimizerState,
    after: Callable[[str], State],
) -> tuple[dict[str, Filter], dict[str, State]]:
    """Return how a step moves each parameter, and the second moments after it.

    Args:
        where: Which step, for messages.
        rules: By parameter.
        numbers: Hyperparameters of the parameters that it moves.
        gradients: Effective ones.
        sparse: Those that are sparse.
        optimizer: Before the step.
        after: Gives a parameter's own state after it, if its rule is ``recorded``.

    Raises:
        UnsupportedRuleError: A rule does not know how.
    """
    moments, filters = dict(optimizer.moments), {}
    for name, n in numbers.items():
        gradient, rule = gradients[name], rules[name]
        known = moments.get(name) or rule.initial(gradient.w, n)
        buffer = optimizer.buffers.get(name)
        held = None if buffer is None else partial(total, buffer)
        later = partial(after, name)
        given = Now(gradient.w, gradient.whole, known, n, held, sparse.get(name), later)
        try:
            filters[name], left = rule.step(given)
        except UnsupportedRuleError as error:
            raise UnsupportedRuleError(f"{where}, {name!r}: {error}") from None
        if left:
            moments[name] = left
    return filters, moments
