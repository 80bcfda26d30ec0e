r"""What a step's gradients did to the test values through this step and all later ones.

    λ_s = Σ_{t ≥ s} K_{t,s}ᵀ q_t,      credit of occurrence i = κ_s c_i ⟨λ_s, g_i⟩,

where ``K_{t,s}`` maps a gradient of step s to the part of step t that it causes. ``λ`` is one
vector per test example, computed backwards: every step adds its ``q_t`` to the adjoint of the
momentum buffer (``Filter.backward``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms import products
from replay.gradients.forms.form import Form
from replay.gradients.forms.outer_products import OuterProducts
from replay.path.buffer_adjoint import BufferAdjoint
from replay.path.test_means import Projections, WeightedGradients, gradient_of
from replay.steps.displacement import Vector
from replay.steps.replayed_step import ReplayedStep
from tracer.rules.filter import Filter

_CACHED = 1 << 19  # elements that stay near the processor
_TEMPORARY = 1 << 25  # elements of a temporary


class Adjoint:
    """Walks backwards along a run for m test examples.

    Args:
        count: m.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._buffers: dict[str, BufferAdjoint] = {}  # by parameter

    def state(self) -> dict[str, Any]:
        """Return ``λ`` after the steps so far, as tensors and numbers."""
        return {name: buffer.state() for name, buffer in self._buffers.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps whose ``state`` it is."""
        self._buffers = {name: BufferAdjoint.of(one) for name, one in state.items()}

    def credits(
        self,
        replayed: ReplayedStep,
        trained: TrainedStep,
        mean: Sequence[WeightedGradients],
        names: frozenset[str] | None = None,
        directions: Sequence[Vector] = (),
    ) -> tuple[Tensor, Tensor]:
        """Find what each occurrence earns from this step and all later ones.

        Args:
            replayed: The step; steps come in descending order.
            trained: Gradients of its examples.
            mean: The test examples' gradients along the step, to be summed.
            names: Parameters whose products count; None is all.
            directions: k vectors by parameter.

        Returns:
            The credits, float64 ``(b, m)``, and products of the mean gradients with the
            directions, float64 ``(k, m)``: where gradients are formed anyway, one product more.
        """
        device = trained.batches[0].losses.device
        sizes = [batch.count for batch in trained.batches]
        result = torch.zeros(sum(sizes), self._count, dtype=torch.float64, device=device)
        shares = list(torch.split(result, sizes))
        projections = Projections(directions, self._count, device)
        postponed: list[dict[str, Tensor]] = [{} for _ in sizes]
        for name in replayed.filters:
            if names is None or name in names:
                self._credit(name, replayed, trained, mean, projections, shares, postponed)
        for k, later in enumerate(postponed):
            if later:
                shares[k] += products.complete_with_vectors(trained.batches[k], later)
        for part in mean:
            projections.add_others(part)
        return result.cpu(), projections.products.cpu()

    def _credit(
        self,
        name: str,
        replayed: ReplayedStep,
        trained: TrainedStep,
        mean: Sequence[WeightedGradients],
        projections: Projections,
        shares: list[Tensor],
        postponed: list[dict[str, Tensor]],
    ) -> None:
        """Add one parameter's part to the shares of each micro-batch, and go one step back.

        Vectors of gradients that are not stored are postponed, to be multiplied all at once.
        """
        rule, kappa = replayed.filters[name], replayed.factors[name]
        complete = [k for k, b in enumerate(trained.batches) if name in b.complete]
        forms = {k: b.forms[name] for k, b in enumerate(trained.batches) if name in b.forms}
        stored = list(forms.values())
        size = self._block(stored, name, replayed, whole=bool(complete))
        outers = self._outers(name, rule, mean)
        if outers is not None:
            rule = rule.without_matrix()
        added = outers is not None and self._added(name, rule, outers)
        waits = added and not complete and self._can_wait(name, rule, stored)
        formed = outers if replayed.filters[name].is_matrix else None
        known = rule, mean, formed, projections
        vectors = self._vectors(name, *known, size, added=added, whole=not waits)
        for rows, found, scale in vectors:
            factor = scale * kappa
            for k, form in forms.items():
                shares[k][:, rows] += factor * form.with_vectors(found)
            for k in complete:
                postponed[k][name] = found * factor
        for k, form in forms.items() if waits else ():
            factor = rule.gain * kappa
            shares[k] += factor * self._buffers[name].waiting(form)
        if name in self._buffers:
            self._buffers[name].fade(rule.kept)

    def _vectors(
        self,
        name: str,
        exact: Filter,
        mean: Sequence[WeightedGradients],
        formed: Sequence[OuterProducts] | None,
        projections: Projections,
        size: int,
        *,
        added: bool,
        whole: bool,
    ) -> Iterator[tuple[slice, Tensor, float]]:
        """Yield ``λ`` of one parameter, some test examples at a time, and a factor to it.

        Args:
            name: The parameter.
            exact: How the step moved it.
            mean: The test examples' gradients along the step.
            formed: What they add up to, if a matrix was multiplied into their factors.
            projections: Gets those that are formed.
            size: How many test examples at a time.
            added: Whether gradients are in the buffer's adjoint already.
            whole: Whether what waits of it is part of ``λ``.
        """
        known = self._buffers.get(name)
        blocks = None if known is None else known.blocks(whole=whole)
        rule: Filter | None = None
        for start in range(0, self._count, size):
            rows = slice(start, min(start + size, self._count))
            q = None if added else self._gradient(mean, formed, name, rows)
            if q is None and not added:
                continue
            if q is not None and not all(part.is_single(name) for part in mean):
                projections.add(name, q, rows)
            if q is not None and known is None and exact.through:
                known = self._buffers[name] = BufferAdjoint(q.new_zeros(self._count, q.shape[1]))
                blocks = known.blocks(whole=True)
            if rule is None:
                like = self._buffers[name].whole if q is None else q
                rule = exact.flat(like.dtype).rescaled(1.0 if known is None else known.scale)
            yield rows, *rule.backward(q, None if blocks is None else blocks(rows))

    def _block(self, forms: list[Form], name: str, replayed: ReplayedStep, *, whole: bool) -> int:
        """Return how many test examples to take at once for one parameter."""
        if whole:
            return self._count
        numel = replayed.transition.before.parameters[name].numel()
        cheap = all(form.factors for form in forms)
        return max(1, (_CACHED if cheap else _TEMPORARY) // max(1, numel))

    def _can_wait(self, name: str, rule: Filter, forms: list[Form]) -> bool:
        return rule.pre is None and self._buffers[name].can_wait(forms)

    def _gradient(
        self,
        mean: Sequence[WeightedGradients],
        formed: Sequence[OuterProducts] | None,
        name: str,
        rows: slice,
    ) -> Tensor | None:
        """Return gradients of one parameter; None if there are none, now or in later steps."""
        if formed is not None:
            return sum((o.deltas[rows].mT @ o.inputs[rows]).flatten(1) for o in formed)  # type: ignore[return-value]
        q = gradient_of(mean, name, rows.start, rows.stop)
        adjoint = self._buffers.get(name)
        if q is None and adjoint is not None:
            return torch.zeros_like(adjoint.whole[rows])
        return q

    def _outers(
        self, name: str, rule: Filter, mean: Sequence[WeightedGradients]
    ) -> list[OuterProducts] | None:
        """Return gradients that are outer products, turned back by a matrix of the rule's.

        Two products of their factors cost less than one of what they are when written out.
        """
        if not (rule.adds_plainly or rule.turns_factors):
            return None
        found = [part.outer(name, self._count) for part in mean if name in part.gradients]
        outers = [outer for outer in found if outer is not None]
        if not outers or len(outers) < len(found):
            return None
        if not rule.is_matrix:
            return outers
        assert rule.outer is not None
        turned = (rule.outer.of_factors(outer.deltas, outer.inputs) for outer in outers)
        return [OuterProducts(a, deltas, 0, deltas.shape[2]) for deltas, a in turned]

    def _added(self, name: str, rule: Filter, outers: Sequence[OuterProducts]) -> bool:
        """Add outer products to a buffer's adjoint, without forming them, if that will do.

        It is the larger part of the walk: one pass over ``λ`` instead of three.
        """
        if not rule.adds_plainly:
            return False
        if name not in self._buffers:
            p, d = outers[0].shape
            self._buffers[name] = BufferAdjoint(outers[0].deltas.new_zeros(self._count, p * d))
        self._buffers[name].add(outers, rule.through)
        return True
