r"""What a step's gradients did to the test values through this step and all later ones.

    λ_s = Σ_{t ≥ s} K_{t,s}ᵀ q_t,      credit of occurrence i = κ_s c_i ⟨λ_s, g_i⟩,

where ``K_{t,s}`` is what of a gradient of step s the optimizer moves at step t. One vector a test
example, found backwards: each step adds its ``q_t`` to what later steps ask of the momentum
buffer (``Filter.backward``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients import products
from replay.gradients.examples import PerExample
from replay.gradients.outer import Outer
from replay.recorded import Recorded
from replay.trained import TrainedStep
from tracer.filters import Filter

_CACHED = 1 << 19  # elements that stay near the processor
_TEMPORARY = 1 << 25  # elements of a temporary


@dataclass(frozen=True)
class Weighted:
    """Gradients of some test examples, with the weight that each has in an average.

    Attributes:
        gradients: Of n examples.
        columns: Which of the m they are, ascending, ``(n,)``.
        weights: ``(n,)``; None is 1.
    """

    gradients: PerExample
    columns: Tensor
    weights: Tensor | None = None

    def outer(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Return the factors of columns start to stop if all are single outer products.

        Returns:
            Weighted ``δ``, ``(k, p, 1)``, and inputs, ``(k, 1, d)``.
        """
        pieces = self.gradients.pieces.get(name, [])
        if not (len(pieces) == 1 and isinstance(pieces[0], Outer) and pieces[0].single):
            return None
        if len(self.columns) < stop or int(self.columns[-1]) >= len(self.columns):
            return None  # not all test examples are here
        some = pieces[0].select(slice(start, stop))
        assert isinstance(some, Outer)
        deltas = some.deltas
        if self.weights is not None:
            deltas = deltas * self.weights[start:stop].to(deltas)[:, None, None]
        return deltas.mT, some.inputs

    def rows(
        self, name: str, start: int, stop: int, role: str | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return weighted gradients of one parameter, and whose, of columns start to stop.

        With a role they may be in a workspace, until the next call for that role.
        """
        if name not in self.gradients.names:
            return None
        inside = (self.columns >= start) & (self.columns < stop)
        if self.weights is not None:
            inside &= self.weights != 0
        chosen = inside.nonzero().flatten()
        if len(chosen) == 0:
            return None
        found = self.gradients.rows(name, chosen.to(self.gradients.losses.device), role)
        if self.weights is not None:
            found = found * self.weights[chosen].to(found)[:, None]
        return found, self.columns[chosen] - start


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
    ) -> Tensor:
        """Return what each occurrence earns from this step and all later ones, float64 ``(b, m)``.

        Args:
            recorded: The step; steps come in descending order.
            trained: Gradients of its examples.
            mean: The test examples' gradients along the step, to be summed.
            names: Parameters whose products count; None is all.
        """
        device = trained.batches[0].losses.device
        sizes = [batch.count for batch in trained.batches]
        result = torch.zeros(sum(sizes), self._count, dtype=torch.float64, device=device)
        shares = list(torch.split(result, sizes))
        postponed: list[dict[str, Tensor]] = [{} for _ in sizes]
        for name, exact in recorded.filters.items():
            if names is not None and name not in names:
                continue
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
        return result.cpu()

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
        q = _sum(mean, name, start, stop)
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


def _sum(mean: Sequence[Weighted], name: str, start: int, stop: int) -> Tensor | None:
    result: Tensor | None = None
    role = "asked" if len(mean) == 1 else None  # else they are needed side by side
    for part in mean:
        found = part.rows(name, start, stop, role)
        if found is None:
            continue
        rows, places = found
        if result is None and len(rows) == stop - start:
            result = rows
            continue
        if result is None:
            result = rows.new_zeros(stop - start, rows.shape[1])
        result = result.index_add(0, places.to(rows.device), rows)
    return result
