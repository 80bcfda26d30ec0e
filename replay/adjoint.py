r"""What a step's gradients did to the test values through this step and all later ones.

    λ_s = Σ_{t ≥ s} K_{t,s}ᵀ q_t,      credit of occurrence i = κ_s c_i ⟨λ_s, g_i⟩,

where ``K_{t,s}`` is what of a gradient of step s the optimizer moves at step t. One vector a test
example, found backwards: each step adds its ``q_t`` to what later steps ask of the momentum
buffer (``Filter.backward``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from replay.displacement import Vector
from replay.gradients import products
from replay.mean import Along, Weighted, gradient_of
from replay.recorded import Recorded
from replay.trained import TrainedStep
from tracer.filters import Filter

_CACHED = 1 << 19  # elements that stay near the processor
_TEMPORARY = 1 << 25  # elements of a temporary


class Adjoint:
    """Walks backwards along a run for m test examples.

    Args:
        count: m.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._asked: dict[str, Tensor] = {}  # of each buffer, by later steps, (m, numel) ...
        self._keep: dict[str, float] = {}  # ... but for this factor

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
            with_rows = [k for k, b in enumerate(trained.batches) if name in b.names]
            complete = [k for k in with_rows if name in trained.batches[k].complete]
            hooked = [k for k in with_rows if k not in complete]
            size = self._block(trained, hooked, name, recorded, whole=bool(complete))
            rule: Filter | None = None
            for start in range(0, self._count, size):
                stop = min(start + size, self._count)
                added = self._added(name, exact, mean, start, stop)
                q = None if added else self._gradient(mean, name, start, stop)
                if q is None and not added:
                    continue
                if q is not None and not all(part.is_single(name) for part in mean):
                    along.add(name, q, slice(start, stop))
                dtype = self._asked[name].dtype if q is None else q.dtype
                rule = exact.flat(dtype) if rule is None else rule
                asked, scale = self._ask(name, rule, q, start, stop)
                scale *= recorded.factors[name]
                for k in hooked:
                    found = products.with_vectors(trained.batches[k].pieces[name], asked)
                    shares[k][:, start:stop] += scale * found
                for k in complete:
                    postponed[k][name] = asked * scale
            self._keep[name] = exact.keep
        for k, vectors in enumerate(postponed):
            if vectors:
                shares[k] += products.complete_with_vectors(trained.batches[k], vectors)
        for part in mean:
            along.add_others(part)
        return result.cpu(), along.products.cpu()

    def _block(
        self,
        trained: TrainedStep,
        hooked: list[int],
        name: str,
        recorded: Recorded,
        *,
        whole: bool,
    ) -> int:
        """Return how many test examples to take at once for one parameter."""
        if whole:
            return self._count
        numel = recorded.transition.before.parameters[name].numel()
        cheap = all(products.is_cheap(trained.batches[k].pieces[name]) for k in hooked)
        return max(1, (_CACHED if cheap else _TEMPORARY) // max(1, numel))

    def _gradient(
        self, mean: Sequence[Weighted], name: str, start: int, stop: int
    ) -> Tensor | None:
        """Return gradients of one parameter; None where nothing is or was asked of it."""
        q = gradient_of(mean, name, start, stop)
        asked = self._asked.get(name)
        if q is None and asked is not None:
            return torch.zeros_like(asked[start:stop])
        return q

    def _added(
        self, name: str, rule: Filter, mean: Sequence[Weighted], start: int, stop: int
    ) -> bool:
        """Add outer products to what is asked of a buffer, without forming them, if that will do.

        It is the larger part of the walk: one pass over ``λ`` instead of three.
        """
        if not rule.adds_plainly:
            return False
        found = [part.outer(name, start, stop) for part in mean if name in part.gradients.names]
        pairs = [pair for pair in found if pair is not None]
        if not pairs or len(pairs) < len(found):
            return False
        deltas, inputs = pairs[0]
        rows, columns = deltas.shape[1], inputs.shape[2]
        if name not in self._asked:
            self._asked[name] = deltas.new_zeros(self._count, rows * columns)
        block = self._asked[name][start:stop].view(-1, rows, columns)
        keep = self._keep.get(name, 1.0)
        for deltas, inputs in pairs:
            block.baddbmm_(deltas, inputs, beta=keep, alpha=rule.through)
            keep = 1.0
        return True

    def _ask(
        self, name: str, rule: Filter, q: Tensor | None, start: int, stop: int
    ) -> tuple[Tensor, float]:
        """Return ``λ`` of one parameter, ``(stop - start, numel)``, and a factor to it."""
        if q is None:
            return rule.backward(None, self._asked[name][start:stop])
        if name not in self._asked and rule.through:
            self._asked[name] = q.new_zeros(self._count, q.shape[1])
        if name not in self._asked:
            return rule.backward(q, None)
        asked = self._asked[name][start:stop]
        keep = self._keep.get(name, 1.0)
        return rule.backward(q, asked if keep == 1 else asked.mul_(keep))
