"""Replays one step's training side and compares it with the log."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from replay.evaluate.binding import Models
from replay.evaluate.state import States, Transition, step_name
from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms.products import squared_norms
from replay.steps.checking import Checks
from replay.steps.clipping import ClipFactors
from replay.steps.diagnosis.applied import applied_gradient
from replay.steps.diagnosis.case import Case, added
from replay.steps.diagnosis.table import cause_of
from replay.steps.displacement import Displacement, Division, split
from replay.steps.divisible import require_sparse
from replay.steps.effective_gradient import effective_gradients
from replay.steps.filters import filters_of
from replay.steps.handed_steps import Sequences
from replay.steps.mismatch import Mismatch, diagnosed
from replay.steps.optimizer_state import OptimizerState, StoredOptimizer
from replay.steps.replayed_step import ReplayedStep, of_all_groups, settings
from replay.steps.trained_steps import TrainedSteps
from replay.task import Task
from tracer.errors import MismatchError
from tracer.records import Step
from tracer.rules.filter import Filter
from tracer.rules.rule import Numbers, UpdateRule
from tracer.rules.rule import State as Moments


class Replayer:
    """Replays steps of one run.

    Args:
        states: The run's states.
        task: Its task.
        models: The bound copies.
        rule: How steps are split; None is not at all.
        window: The steps that are asked about.
        audited: Steps whose per-example gradients are proven.
        budget: Bytes for complete gradients.
        allow_mismatch: Go on where a step does not reproduce.
        whole: Return steps with the optimizer before them and the sums of their gradients.
        begin: Begins what processes of a host share; None shares nothing.

    Attributes:
        factors: What finds how gradients were clipped.
        stored: The optimizer's states on file; None without a rule.
        steps: Computes gradients of steps.
    """

    def __init__(
        self,
        states: States,
        task: Task,
        models: Models,
        rule: UpdateRule | None,
        *,
        window: range,
        audited: set[int],
        budget: int,
        allow_mismatch: bool,
        whole: bool = False,
        begin: Sequences | None = None,
    ) -> None:
        self._whole = whole
        self._states, self._task, self._models, self._rule = states, task, models, rule
        known = str(states.log.path), models.test.dtype is None, allow_mismatch, models.train
        self._checks, self.factors = Checks(*known), ClipFactors(*known)
        self.stored = None if rule is None else StoredOptimizer(states, rule, models.device)
        self._added: dict[int, float] = {}
        self.steps = TrainedSteps(states, task, models, window, audited, budget, begin)

    def replay(
        self, t: int, optimizer: OptimizerState, *, keep: bool
    ) -> tuple[ReplayedStep, OptimizerState]:
        """Replay a step.

        Args:
            t: The step.
            optimizer: Before it.
            keep: Whether with its examples' gradients.

        Returns:
            The step, and the optimizer after it.

        Raises:
            MismatchError: It is not the step that was logged.
        """
        optimizer = self.checked(optimizer, t)
        if self.stored is not None:
            optimizer = self.stored.as_in_run(optimizer, t)
        trained = self.steps.of(t, keep=keep)
        now = self._states.transition(t, None if trained.penalty else trained.applied)
        try:
            return self._divided(now, trained, optimizer, keep=keep)
        except Mismatch as found:
            error = self._diagnosed(found, now, trained, optimizer)
        raise error

    def _divided(
        self, now: Transition, trained: TrainedStep, optimizer: OptimizerState, *, keep: bool
    ) -> tuple[ReplayedStep, OptimizerState]:
        total = partial(self._sum_of_norms, now.step, trained)
        logged, factors = settings(now.step, self.factors.of(now.step, trained, total))
        examples = (trained if self._whole else trained.examples_only()) if keep else None
        if self._rule is None:
            filters = dict.fromkeys(logged, Filter())
            nothing = Displacement({}, {}, {}, {})
            return ReplayedStep(now, filters, factors, nothing, examples), optimizer
        known = self._rule, logged, factors, optimizer
        filters, moments, divided = self._split(now, trained, *known)
        most = max((abs(factor) for factor in factors.values()), default=1.0)
        checks = self._checks.at_drift(self._states.drift.get(now.step.index + 1, 0.0))
        noise, unit = checks.step(now, filters, divided, optimizer.noise, lambda: most * total())
        after = replace(
            optimizer,
            moments=moments,
            buffers=divided.buffers,
            noise=noise,
            unit=max(unit, optimizer.unit),
        )
        before = optimizer.as_history() if self._whole else None
        return ReplayedStep(now, filters, factors, divided.parts, examples, before), after

    def _split(
        self,
        now: Transition,
        trained: TrainedStep,
        rule: UpdateRule,
        logged: dict[str, Numbers],
        factors: dict[str, float],
        optimizer: OptimizerState,
    ) -> tuple[dict[str, Filter], dict[str, Moments], Division]:
        """Return how a step moves each parameter, the moments after it, and the step divided."""
        later = {} if self.stored is None else self.stored.later(now.step)
        largest = of_all_groups(now.step, rule)
        numbers: dict[str, Numbers] = {
            name: {**optimizer.as_tensors(name, n), **later.get(name, {}), **largest[name]}
            for name, n in logged.items()
        }
        device, dtype = self._models.device, self._models.test.dtype
        rules = {name: rule.of(k) for name, k in now.step.optimizers.items()}
        decays = {name: rules[name].coupled_decay(n) for name, n in numbers.items()}
        gradients = effective_gradients(now.before, trained, decays, factors, device)
        for name in trained.sparse:
            require_sparse(step_name(now.step), name, rules[name])
        after = partial(self._after, now.step.index)
        known = gradients, trained.sparse, optimizer, after
        where = f"step {now.step.index} of {self._states.log.path}"
        filters, moments = filters_of(where, rules, numbers, *known)
        for name in rules.keys() - numbers.keys():  # without a gradient
            left = rules[name].idle(now.before.parameters[name], moments.get(name, {}))
            moments |= {name: left} if left else {}
        return filters, moments, split(now, gradients, filters, optimizer.buffers, device, dtype)

    def checked(self, optimizer: OptimizerState, t: int) -> OptimizerState:
        """Return the optimizer before step ``t``, compared with its state on file if there is one.

        Raises:
            MismatchError: They differ.
        """
        if self.stored is None:
            return optimizer
        checks = self._checks.at_drift(self._states.drift.get(t, 0.0))
        return self.stored.renewed(optimizer, t, checks)

    def _diagnosed(
        self, found: Mismatch, now: Transition, trained: TrainedStep, optimizer: OptimizerState
    ) -> MismatchError:
        """Return the error with the cause that explains the step, if one does."""

        def anew() -> dict[str, Tensor]:
            if self._rule is None or (self._rule.buffer is None and not self._rule.adapts):
                return {}
            sizes = partial(self._sum_of_norms, now.step, trained)
            logged, factors = settings(now.step, self.factors.of(now.step, trained, sizes))
            nothing = OptimizerState(tensors=optimizer.tensors)
            parts = self._split(now, trained, self._rule, logged, factors, nothing)[2].parts
            return parts.rounding

        case = Case(
            self._states,
            self._task,
            self._models.train,
            now,
            plain=added(trained.gradient, trained.penalty),
            applied=applied_gradient(self._rule, now, optimizer.buffers),
            rest=found.rest,
            anew=anew,
            same_dtype=self._models.test.dtype is None,
            device=self._models.device,
        )
        cause = cause_of(case)
        if cause is None:
            return found
        return MismatchError(diagnosed(found.finding, cause.text, cause.remedies, cause.anchor))

    def _after(self, t: int, name: str) -> Moments:
        return {} if self.stored is None else self.stored.after(t, name)

    def _sum_of_norms(self, step: Step, trained: TrainedStep) -> float:
        """Return ``Σ_i ‖c_i g_i‖`` of a step."""
        t = step.index
        if t not in self._added:
            batches = trained.batches or self.steps.of(t).batches
            names = set(step.trained)
            norms = [squared_norms(batch, names & batch.names).sqrt().sum() for batch in batches]
            self._added[t] = float(sum(norms))
        return self._added[t]
