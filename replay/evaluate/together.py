"""One function of a small model at several states in one pass, with a dimension more for these.

A pass of a small model is Python rather than arithmetic, so some states at once take little more
than one. ``torch.func.vmap`` refuses what the data decide, what draws at random, hooks and autograd
functions of anybody's own. While it computes, the model itself holds nothing but NaN: a parameter
that is reached by another name gives nothing that is taken for a number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from replay.evaluate.binding import BoundModel, without_graph
from replay.evaluate.elsewhere import Elsewhere
from replay.evaluate.eval_mode import is_usual
from replay.gradients.stacks import NotStacked, Stack, gradients

_PLAIN = (bool, int, float, str, bytes, type(None))


class Together:
    """A function of a bound model at several states.

    Args:
        function: Gets the model and a batch, returns losses.
        bound: The model.
    """

    def __init__(self, function: Callable[..., Tensor], bound: BoundModel) -> None:
        self._at, self._bound = Elsewhere(function, bound.module), bound

    def gradients(
        self,
        states: Mapping[str, Tensor],
        batches: Sequence[Any],
        names: Sequence[str],
        weights: Tensor | None = None,
    ) -> Stack:
        """Return gradients at each state.

        Args:
            states: Parameters, ``(S, *shape)`` each.
            batches: One for each of them, or one for all.
            names: With respect to which parameters.
            weights: Of the losses, ``(S, n)``; None is 1, and without plain gradients.

        Raises:
            NotStacked: They cannot be taken in one pass. ``vmap`` has errors of its own.
        """
        stacked = self._held(states)
        moving = {name: stacked[name].requires_grad_() for name in names}
        with torch.enable_grad():
            losses = self._losses(stacked, batches)
        return gradients(moving, losses, weights)

    def values(self, states: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Return values at each state, float64 ``(S, n)``."""
        stacked = self._held(states)
        return without_graph(lambda: self._losses(stacked, [batch])).double()

    def _held(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters as the model has them; its own become NaN: no one may use them."""
        if kept := self._bound.eval_mode.kept():
            raise NotStacked(f"{next(iter(kept))} is a tensor, but neither parameter nor buffer")
        found = {name: states[name].to(own) for name, own in self._bound.parameters.items()}
        with torch.no_grad():
            for own in self._bound.parameters.values():
                own.fill_(torch.nan)
        return found

    def _losses(self, stacked: dict[str, Tensor], batches: Sequence[Any]) -> Tensor:
        leaves, structure = joined(batches)
        several = len(batches) > 1
        places = [0 if several and isinstance(leaf, Tensor) else None for leaf in leaves]

        def one(parameters: dict[str, Tensor], *given: Any) -> Tensor:
            return self._at.at(parameters, tree_unflatten(list(given), structure))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where vmap goes from state to state
            found = vmap(one, in_dims=(0, *places), randomness="error")(stacked, *leaves)
        if not isinstance(found, Tensor) or found.dim() != 2:
            raise NotStacked("losses are not one number an example")
        return found


def joined(batches: Sequence[Any]) -> tuple[list[Any], Any]:
    """Return the leaves of batches that are alike, tensors stacked, and their structure."""
    flat = [tree_flatten(batch) for batch in batches]
    if len(flat) == 1:
        return flat[0]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    found = [torch.stack(c) if isinstance(c[0], Tensor) else c[0] for c in columns]
    return found, flat[0][1]


def kind_of(batch: Any) -> tuple[Any, ...] | None:
    """Return what is equal for batches that are alike; None if they hold things of other kinds."""
    leaves, structure = tree_flatten(batch)
    if not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
        return None
    return structure, [
        (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)
        for leaf in leaves
    ]


def refused(bound: BoundModel) -> str | None:
    """Return why states of a model cannot be taken together, as far as the model itself says."""
    parameters = bound.parameters.values()
    if any(True for _ in bound.module.buffers()):
        return "the model has buffers"
    if not all(p.is_floating_point() and p.dtype.itemsize > 2 for p in parameters):
        return "a parameter is of half precision or of whole numbers"
    usual = all(map(is_usual, bound.module.modules()))
    if not usual or bound.eval_mode.flags_only or bound.eval_mode.anew:
        return "train() or eval() of the model does more than set flags"
    hooks = [m for m in bound.module.modules() if m._backward_hooks or m._backward_pre_hooks]
    if hooks or any(p._backward_hooks for p in parameters):
        return "the model has backward hooks"
    return None
