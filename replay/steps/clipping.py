r"""Whether the gradient that a step applied is the replayed one times one factor a group.

    gradient as applied = κ Σ c_i g_i

``κ`` is the logged clip factor, unless the logged norm says that it was smaller still. Value
clipping, noise and the like change gradients otherwise; then there is no split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from replay.evaluate.binding import BoundModel
from replay.evaluate.trained_step import TrainedStep
from replay.steps.mismatch import Mismatch, differently, tolerance
from tracer.records import Step


@dataclass(frozen=True)
class _Replayed:
    """Norms of a step's replayed gradients.

    Attributes:
        groups: By group and parameter.
        whole: Of all together.
        share: How much of what was added up may be rounding.
        added: ``Σ_i ‖c_i g_i‖``: their sum may cancel; called if needed.
    """

    groups: list[dict[str, float]]
    whole: float
    share: float
    added: Callable[[], float]

    def is_rounding(self, gap: float, kappa: float, *, times: float) -> bool:
        """Return whether a norm may be off by so much, of the whole one ``times`` the share."""
        allowed = self.share * kappa
        return not gap > times * allowed * self.whole or not gap > allowed * self.added()


@dataclass
class ClipFactors:
    """Finds the factors of a run's steps.

    Attributes:
        path: The log, for messages.
        same_dtype: Whether the replay computes in the run's dtype.
        allow_mismatch: Go on where a step does not reproduce.
        model: In which steps are replayed.
        inferred: Steps whose gradient was scaled outside the optimizer, by the factor found.
        deviations: By step, the largest gap between a parameter's norm and the logged one, of the
            whole norm.
    """

    path: str
    same_dtype: bool
    allow_mismatch: bool
    model: BoundModel
    inferred: dict[int, float] = field(default_factory=dict)
    deviations: dict[int, float] = field(default_factory=dict)

    def scaled(self, steps: range) -> int:
        """Return how many of some steps had gradients scaled outside the optimizer."""
        return len(self.inferred.keys() & set(steps))

    def of(self, step: Step, trained: TrainedStep, added: Callable[[], float]) -> list[float]:
        """Return ``κ`` of each group.

        Args:
            step: As logged.
            trained: As replayed.
            added: ``Σ_i ‖c_i g_i‖``.

        Raises:
            MismatchError: The gradient as applied was larger than the replayed one, or is not
                that times one factor a group; names step and parameter.
        """
        found = self._norms(step, trained, added)
        kappas = [self._factor(step, g, found) for g in range(len(step.groups))]
        if not self.allow_mismatch:
            for g, kappa in enumerate(kappas):
                self._require_one(step, g, kappa, found)
        return kappas

    def _norms(self, step: Step, trained: TrainedStep, added: Callable[[], float]) -> _Replayed:
        share, groups = 1e-10, []
        for group in step.groups:
            replayed: dict[str, Tensor] = {}
            none = dict.fromkeys((n for n in group.names if n not in step.without_gradient), 0.0)
            for name in group.names:
                parts = [s[name] for s in (trained.gradient, trained.penalty) if name in s]
                if parts and name not in step.without_gradient:
                    share = max(share, self._share(parts[0].dtype) / 10)
                    replayed[name] = parts[0] if len(parts) == 1 else parts[0].double() + parts[1]
            groups.append(none | _norms(replayed))
        whole = math.hypot(*(norm for group in groups for norm in group.values()))
        return _Replayed(groups, whole, share, added)

    def _share(self, dtype: torch.dtype) -> float:
        return tolerance(dtype, self.same_dtype, self.model.coarsest)

    def _factor(self, step: Step, g: int, found: _Replayed) -> float:
        known, applied = step.clip_factor, step.groups[g].gradient_norm
        expected = known * math.hypot(*found.groups[g].values())
        gap = abs(applied - expected)
        if not (expected and math.isfinite(applied)) or found.is_rounding(gap, known, times=1):
            return known
        if applied < expected:
            self.inferred[step.index] = known * applied / expected
            return known * applied / expected
        if self.allow_mismatch:
            return known
        raise self._mismatch(step, f"gradient norm of group {g}", applied, expected)

    def _require_one(self, step: Step, g: int, kappa: float, found: _Replayed) -> None:
        group = step.groups[g]
        applied = dict(zip(group.names, group.norms, strict=False))  # early logs have none
        gaps = {
            name: abs(applied[name] - kappa * norm)
            for name, norm in found.groups[g].items()
            if name in applied
        }
        name = max(gaps, key=lambda name: gaps[name], default="")
        if gaps and found.whole and kappa:
            known = self.deviations.get(step.index, 0.0)
            self.deviations[step.index] = max(known, gaps[name] / (kappa * found.whole))
        if not gaps or found.is_rounding(gaps[name], kappa, times=10):
            return
        expected = kappa * found.groups[g][name]
        times = "" if kappa == 1 else f", after the factor {kappa:.4g} of group {g}"
        raise self._mismatch(step, f"gradient norm of {name!r}", applied[name], expected, times)

    def _mismatch(
        self, step: Step, what: str, applied: float, expected: float, times: str = ""
    ) -> Mismatch:
        run, replay = differently(applied, expected)
        finding = (
            f"step {step.index} of {self.path} does not reproduce: the {what} was {run} in the run "
            f"and is {replay} in the replay{times}"
        )
        return Mismatch(finding, same_dtype=self.same_dtype)


def _norms(vectors: dict[str, Tensor]) -> dict[str, float]:
    """Return the norm of each, taken as the log's are."""
    found: dict[str, float] = {}
    for kind in dict.fromkeys((v.dtype, v.device) for v in vectors.values()):
        names = [n for n, v in vectors.items() if (v.dtype, v.device) == kind]
        some = [vectors[name] for name in names]
        some = some if kind[0].itemsize > 2 else [v.float() for v in some]
        values = torch.stack(torch._foreach_norm(some)).tolist()
        found.update(zip(names, values, strict=True))
    return found
