"""Replays one step's training side and compares it with the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from replay.evaluate.binding import Models
from replay.evaluate.state import State, States
from replay.evaluate.train_side import TrainedStep, replay_gradient, replay_step
from replay.gradients.forms.products import squared_norms
from replay.steps.checking import Checks
from replay.steps.clipping import ClipFactors
from replay.steps.displacement import Displacement, split
from replay.steps.effective_gradient import EffectiveGradient, effective_gradients
from replay.steps.optimizer_state import OptimizerState, StoredOptimizer
from replay.steps.replayed_step import ReplayedStep, settings
from replay.task import Task
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
        audited: Steps whose per-example gradients are proven.
        budget: Bytes for complete gradients.
        allow_mismatch: Go on where a step does not reproduce.

    Attributes:
        factors: What finds how gradients were clipped.
        stored: The optimizer's states on file; None without a rule.
    """

    def __init__(
        self,
        states: States,
        task: Task,
        models: Models,
        rule: UpdateRule | None,
        *,
        audited: set[int],
        budget: int,
        allow_mismatch: bool,
    ) -> None:
        self._states, self._task, self._models, self._rule = states, task, models, rule
        self._audited, self._budget = audited, budget
        known = str(states.log.path), models.test.dtype is None, allow_mismatch
        self._checks, self.factors = Checks(*known), ClipFactors(*known)
        self.stored = None if rule is None else StoredOptimizer(states, rule, models.device)
        self._added: dict[int, float] = {}

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
        now = self._states.transition(t)
        how = replay_step if keep else replay_gradient
        trained = self._run(how, now.step, now.before)
        added = partial(self._sum_of_norms, now.step, now.before, trained)
        logged, factors = settings(now.step, self.factors.of(now.step, trained, added))
        numbers = {name: optimizer.as_tensors(name, n) for name, n in logged.items()}
        examples = trained.examples_only() if keep else None
        if self._rule is None:
            filters = dict.fromkeys(numbers, Filter())
            nothing = Displacement({}, {}, {}, {})
            return ReplayedStep(now, filters, factors, nothing, examples), optimizer
        device, dtype = self._models.device, self._models.test.dtype
        decays = {name: self._rule.coupled_decay(n) for name, n in numbers.items()}
        gradients = effective_gradients(now.before, trained, decays, factors, device)
        filters, moments = self._filters(self._rule, numbers, gradients, optimizer)
        divided = split(now, gradients, filters, optimizer.buffers, device, dtype)
        most = max((abs(factor) for factor in factors.values()), default=1.0)
        noise, unit = self._checks.step(
            now, filters, divided, optimizer.noise, lambda: most * added()
        )
        after = replace(
            optimizer,
            moments=moments,
            buffers=divided.buffers,
            noise=noise,
            unit=max(unit, optimizer.unit),
        )
        return ReplayedStep(now, filters, factors, divided.parts, examples), after

    def checked(self, optimizer: OptimizerState, t: int) -> OptimizerState:
        """Return the optimizer before step ``t``, compared with its state on file if there is one.

        Raises:
            MismatchError: They differ.
        """
        return optimizer if self.stored is None else self.stored.renewed(optimizer, t, self._checks)

    def train(self, step: Step, state: State) -> TrainedStep:
        """Compute the gradients of a step's examples at a state."""
        return self._run(replay_step, step, state)

    def _filters(
        self,
        rule: UpdateRule,
        numbers: dict[str, Numbers],
        gradients: dict[str, EffectiveGradient],
        optimizer: OptimizerState,
    ) -> tuple[dict[str, Filter], dict[str, Moments]]:
        """Return how the step moves each parameter, and the second moments after it."""
        moments, filters = dict(optimizer.moments), {}
        for name, n in numbers.items():
            if rule.adapts:
                known = moments.get(name) or rule.initial(gradients[name].w, n)
                moments[name] = rule.observe(known, gradients[name].whole, n)
            first = name not in optimizer.buffers
            filters[name] = rule.filter(moments.get(name, {}), n, first=first)
        return filters, moments

    def _run(self, replay: Callable[..., TrainedStep], step: Step, state: State) -> TrainedStep:
        models = self._models
        if replay is replay_step and step.index in self._audited:
            models.train.engine.audit()
        return replay(
            self._task,
            step,
            state,
            models.train,
            step.trained,
            device=models.device,
            budget=self._budget,
        )

    def _sum_of_norms(self, step: Step, state: State, trained: TrainedStep) -> float:
        """Return ``Σ_i ‖c_i g_i‖`` of a step."""
        t = step.index
        if t not in self._added:
            batches = trained.batches or self.train(step, state).batches
            names = set(step.trained)
            norms = [squared_norms(batch, names & batch.names).sqrt().sum() for batch in batches]
            self._added[t] = float(sum(norms))
        return self._added[t]
