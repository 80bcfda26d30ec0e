"""Gradients of a step's real batch: of each example, and their sum as autograd gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from replay.gradients.forms.per_example import PerExample
from replay.gradients.forms.written_once import written_once
from replay.gradients.proof.agreement import dense
from replay.vectors.fused import together
from tracer.records import ID

TENSOR = 1 << 10  # bytes that a tensor takes besides its elements, about, with its place in a dict


@dataclass(frozen=True)
class TrainedStep:
    """Gradients of ``c_i ℓ_i`` of every occurrence in a step.

    Attributes:
        batches: One for each micro-batch, in order; none where only the sum was computed.
        ids: Every occurrence, in the same order, ``(b,)``.
        gradient: ``Σ c_i g_i`` by parameter.
        penalty: Gradient of ``task.penalty``; empty without one.
        sparse: What of the sum of both is sparse.
    """

    batches: list[PerExample]
    ids: list[ID]
    gradient: dict[str, Tensor]
    penalty: dict[str, Tensor]
    sparse: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        batches: list[PerExample],
        ids: list[ID],
        totals: list[dict[str, Tensor]],
        penalty: dict[str, Tensor],
    ) -> TrainedStep:
        """Return it by the gradients of its micro-batches, as autograd gave them."""
        gradient = _added(totals)
        sparse = {n: g for n, g in _added([gradient, penalty]).items() if g.is_sparse}
        return cls(batches, ids, together(_dense(gradient)), _dense(penalty), sparse)

    @property
    def applied(self) -> dict[str, Tensor]:
        """``Σ c_i g_i`` as an optimizer takes it, without the penalty."""
        return self.gradient if self.penalty else self.gradient | self.sparse

    @property
    def nbytes(self) -> float:
        """Bytes of what is stored; infinite where gradients are computed when asked for."""
        forms = [form for batch in self.batches for form in batch.forms.values()]
        tensors = len(self.batches) + sum(len(form.tensors) for form in forms)
        sums = [v for some in (self.gradient, self.penalty) for v in some.values()]
        stored = sum(batch.nbytes for batch in self.batches) + sum(v.nbytes for v in sums)
        return (tensors + len(sums)) * TENSOR + stored

    def examples_only(self) -> TrainedStep:
        """Return the same without the sums, which nobody needs once the step is divided."""
        batches = [replace(batch, total={}) for batch in self.batches]
        return TrainedStep(batches, self.ids, {}, {})

    def for_several(self) -> TrainedStep:
        """Return the same for several chunks of test examples, one after the other."""
        return replace(self, batches=[written_once(batch) for batch in self.batches])


def _added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the sum of gradients; one is sparse if all of its parts are."""
    whole: dict[str, Tensor] = {}
    for found in parts:
        for name, part in found.items():
            whole[name] = _sum(whole[name], part) if name in whole else part
    return whole


def _sum(left: Tensor, right: Tensor) -> Tensor:
    return right + left if left.is_sparse else left + right  # torch adds nothing dense to a sparse


def _dense(gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: dense(one) for name, one in gradient.items()}
