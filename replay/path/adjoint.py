r"""What a step's gradients did to the test values through this step and all later ones.

    λ_s = Σ_{t ≥ s} K_{t,s}ᵀ q_t,      credit of occurrence i = κ_s c_i ⟨λ_s, g_i⟩,

where ``K_{t,s}`` is what of a gradient of step s the optimizer moves at step t. One vector a test
example, found backwards: each step adds its ``q_t`` to what later steps ask of the momentum
buffer (``Filter.backward``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from replay.evaluate.train_side import TrainedStep
from replay.gradients.forms import products
from replay.gradients.forms.form import Form
from replay.path.buffer_adjoint import Asked
from replay.path.test_means import Along, Weighted, gradient_of
from replay.steps.displacement import Vector
from replay.steps.replayed_step import Recorded
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
        self._asked: dict[str, Asked] = {}  # of each buffer, by later steps

    def credits(
        self,
        recorded: Recorded,
        trained: TrainedStep,
        mean: Sequence[Weighted],
        names: frozenset[str] | None = None,
        directions: Sequence[Vector] = (),
    ) -> tuple[Tensor, Tensor]:
        """Find what each occurrence earns from this step and all later ones.

        Args:
            recorded: The step; steps come in descending order.
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
        along = Along(directions, self._count, device)
        postponed: list[dict[str, Tensor]] = [{} for _ in sizes]
        chosen = {n: f for n, f in recorded.filters.items() if names is None or n in names}
        for name, exact in chosen.items():
            complete = [k for k, b in enumerate(trained.batches) if name in b.complete]
            forms = {k: b.forms[name] for k, b in enumerate(trained.batches) if name in b.forms}
            size = self._block(list(forms.values()), name, recorded, whole=bool(complete))
            added = self._added(name, exact, mean)
            waits = added and not complete and self._can_wait(name, exact, list(forms.values()))
            vectors = self._vectors(name, exact, mean, along, size, added=added, whole=not waits)
            for rows, asked, scale in vectors:
                factor = scale * recorded.factors[name]
                for k, form in forms.items():
                    shares[k][:, rows] += factor * form.with_vectors(asked)
                for k in complete:
                    postponed[k][name] = asked * factor
            for k, form in forms.items() if waits else ():
                factor = exact.gain * recorded.factors[name]
                shares[k] += factor * self._asked[name].waiting(form)
            if name in self._asked:
                self._asked[name].fade(exact.keep)
        for k, later in enumerate(postponed):
            if later:
                shares[k] += products.complete_with_vectors(trained.batches[k], later)
        for part in mean:
            along.add_others(part)
        return result.cpu(), along.products.cpu()

    def _vectors(
        self,
        name: str,
        exact: Filter,
        mean: Sequence[Weighted],
        along: Along,
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
            along: Gets those that are formed.
            size: How many test examples at a time.
            added: Whether gradients are with what is asked already.
            whole: Whether what waits of it is part of ``λ``.
        """
        known = self._asked.get(name)
        blocks = None if known is None else known.blocks(whole=whole)
        rule: Filter | None = None
        for start in range(0, self._count, size):
            rows = slice(start, min(start + size, self._count))
            q = None if added else self._gradient(mean, name, rows)
            if q is None and not added:
                continue
            if q is not None and not all(part.is_single(name) for part in mean):
                along.add(name, q, rows)
            if q is not None and known is None and exact.through:
                known = self._asked[name] = Asked(q.new_zeros(self._count, q.shape[1]))
                blocks = known.blocks(whole=True)
            if rule is None:
                like = self._asked[name].whole if q is None else q
                rule = exact.flat(like.dtype).rescaled(1.0 if known is None else known.scale)
            yield rows, *rule.backward(q, None if blocks is None else blocks(rows))

    def _block(self, forms: list[Form], name: str, recorded: Recorded, *, whole: bool) -> int:
        """Return how many test examples to take at once for one parameter."""
        if whole:
            return self._count
        numel = recorded.transition.before.parameters[name].numel()
        cheap = all(form.factors for form in forms)
        return max(1, (_CACHED if cheap else _TEMPORARY) // max(1, numel))

    def _can_wait(self, name: str, rule: Filter, forms: list[Form]) -> bool:
        return rule.pre is None and self._asked[name].can_wait(forms)

    def _gradient(self, mean: Sequence[Weighted], name: str, rows: slice) -> Tensor | None:
        """Return gradients of one parameter; None where nothing is or was asked of it."""
        q = gradient_of(mean, name, rows.start, rows.stop)
        asked = self._asked.get(name)
        if q is None and asked is not None:
            return torch.zeros_like(asked.whole[rows])
        return q

    def _added(self, name: str, rule: Filter, mean: Sequence[Weighted]) -> bool:
        """Add outer products to what is asked of a buffer, without forming them, if that will do.

        It is the larger part of the walk: one pass over ``λ`` instead of three.
        """
        if not rule.adds_plainly:
            return False
        found = [part.outer(name, self._count) for part in mean if name in part.gradients.names]
        outers = [outer for outer in found if outer is not None]
        if not outers or len(outers) < len(found):
            return False
        if name not in self._asked:
            p, d = outers[0].shape
            self._asked[name] = Asked(outers[0].deltas.new_zeros(self._count, p * d))
        self._asked[name].add(outers, rule.through)
        return True
