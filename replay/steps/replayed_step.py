"""One step as the replay found it: how it moved each parameter, and what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replay.evaluate.state import Transition
from replay.evaluate.trained_step import TENSOR, TrainedStep
from replay.steps.displacement import Displacement
from replay.steps.optimizer_state import OptimizerState
from tracer.records import Step
from tracer.rules.filter import Filter
from tracer.rules.rule import Numbers, UpdateRule

_STEP = 4 << 10  # bytes that a step takes besides its tensors, about
_VISIT = 128  # ... an ID and its coefficient


@dataclass(frozen=True)
class ReplayedStep:
    """One step's training side, replayed and compared with the log.

    Attributes:
        transition: The logged step, with the states at both ends.
        filters: How it moved each parameter.
        factors: ``±κ`` of each: what its gradient was multiplied by.
        parts: What it was made of.
        trained: Gradients of its examples; None if they are to be computed again.
        optimizer: Before the step; None where nobody needs it.
    """

    transition: Transition
    filters: dict[str, Filter]
    factors: dict[str, float]
    parts: Displacement
    trained: TrainedStep | None
    optimizer: OptimizerState | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, about, without its examples' gradients."""
        now = self.transition
        batches = now.step.micro_batches
        optimizer = self.optimizer or OptimizerState()
        tensors = [*now.before.parameters.values(), *now.before.buffers.values()]
        tensors += [v for part in self.parts.parts for v in part.values()]
        for rule in self.filters.values():
            tensors += rule.tensors
        tensors += [v for state in optimizer.moments.values() for v in state.values()]
        tensors += [v for b in optimizer.buffers.values() for v in b if v is not None]
        tensors += [batch.coefficients for batch in batches]
        random = [batch.random_state for batch in batches if batch.random_state is not None]
        tensors += [t for one in random for t in (one.cpu, *one.cuda.values())]
        visits = sum(len(batch.ids) for batch in batches)
        return _STEP + visits * _VISIT + sum(t.nbytes + TENSOR for t in tensors)


def settings(step: Step, kappas: Sequence[float]) -> tuple[dict[str, Numbers], dict[str, float]]:
    """Return hyperparameters and ``±κ`` of each parameter that a step moved.

    Args:
        step: As logged.
        kappas: ``κ`` of each group.
    """
    numbers: dict[str, Numbers] = {}
    factors = {}
    moved = set(step.moved)
    for group, kappa in zip(step.groups, kappas, strict=True):
        for name in group.names:
            if name in moved:
                numbers[name] = group.hyperparameters
                factors[name] = -kappa if group.hyperparameters.get("maximize") else kappa
    return numbers, factors


def of_all_groups(step: Step, rule: UpdateRule) -> dict[str, Numbers]:
    """Return the hyperparameters that a rule takes the largest of, over its optimizer's groups."""
    found: dict[str, Numbers] = {}
    for number, groups in step.groups_by_optimizer.items():
        keys = rule.of(number).largest
        most = {f"{k} largest": max(group.hyperparameters[k] for group in groups) for k in keys}
        found |= {name: most for group in groups for name in group.names}
    return found
