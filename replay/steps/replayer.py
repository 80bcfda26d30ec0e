"""Replays one step's training side and compares it with the log."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from replay.evaluate.state import State, Transition
from replay.evaluate.test_side import Models
from replay.evaluate.train_side import TrainedStep, replay_gradient, replay_step
from replay.gradients.forms.products import squared_norms
from replay.states.logged import state
from replay.steps.checking import Checks
from replay.steps.clipping import ClipFactors
from replay.steps.displacement import Displacement, split
from replay.steps.effective_gradient import drives
from replay.steps.optimizer_state import Memory, StoredStates
from replay.steps.replayed_step import Recorded, settings
from replay.task import Task
from tracer.log.read.run_log import RunLog
from tracer.rules.filter import Filter
from tracer.rules.rule import State as Moments
from tracer.rules.rule import UpdateRule


class StepRecorder:
    """Records steps of one run.

    Args:
        log: The run.
        task: Its task.
        models: The bound copies.
        rule: How steps are split; None is not at all.
        audited: Steps whose per-example gradients are proven.
        budget: Bytes for complete gradients.
        lenient: Go on where a step does not reproduce.

    Attributes:
        factors: What finds how gradients were clipped.
        stored: The optimizer's states in the log; None without a rule.
    """

    def __init__(
        self,
        log: RunLog,
        task: Task,
        models: Models,
        rule: UpdateRule | None,
        *,
        audited: set[int],
        budget: int,
        lenient: bool,
    ) -> None:
        self._log, self._task, self._models, self._rule = log, task, models, rule
        self._audited, self._budget = audited, budget
        known = str(log.path), models.test.dtype is None, lenient
        self._checks, self.factors = Checks(*known), ClipFactors(*known)
        self.stored = None if rule is None else StoredStates(log, rule, models.device)
        self._states: dict[int, State] = {}
        self._sums: dict[int, float] = {}

    def record(self, t: int, memory: Memory, *, keep: bool) -> tuple[Recorded, Memory]:
        """Replay a step.

        Args:
            t: The step.
            memory: What the optimizer remembers before it.
            keep: Whether with its examples' gradients.

        Returns:
            The step, and what the optimizer remembers after it.

        Raises:
            MismatchError: It is not the step that was logged.
        """
        memory = self.checked(memory, t)
        now = self._transition(t)
        trained = self._run(replay_step if keep else replay_gradient, now)
        added = partial(self._added, now, trained)
        numbers, factors = settings(now.step, self.factors.of(now.step, trained, added))
        examples = trained.examples_only() if keep else None
        if self._rule is None:
            filters = dict.fromkeys(numbers, Filter())
            return Recorded(now, filters, factors, Displacement({}, {}, {}, {}), examples), memory
        decays = {name: self._rule.coupled_decay(n) for name, n in numbers.items()}
        driven = drives(now, trained, decays, factors, self._models.device)
        moments: dict[str, Moments] = dict(memory.moments)
        filters = {}
        for name, n in numbers.items():
            if self._rule.adapts:
                known = moments.get(name) or self._rule.initial(driven[name].w, n)
                moments[name] = self._rule.observe(known, driven[name].whole, n)
            first = name not in memory.buffers
            filters[name] = self._rule.filter(moments.get(name, {}), n, first=first)
        device, dtype = self._models.device, self._models.test.dtype
        divided = split(now, driven, filters, memory.buffers, device, dtype)
        most = max((abs(factor) for factor in factors.values()), default=1.0)
        noise, unit = self._checks.step(now, filters, divided, memory.noise, lambda: most * added())
        recorded = Recorded(now, filters, factors, divided.parts, examples)
        return recorded, Memory(moments, divided.buffers, noise, max(unit, memory.unit))

    def checked(self, memory: Memory, t: int) -> Memory:
        """Return what is known before step ``t``, compared with the log's full state if it has one.

        Raises:
            MismatchError: They differ.
        """
        return memory if self.stored is None else self.stored.renewed(memory, t, self._checks)

    def train(self, transition: Transition) -> TrainedStep:
        """Compute the gradients of a step's examples."""
        return self._run(replay_step, transition)

    def _run(self, replayed: Callable[..., TrainedStep], now: Transition) -> TrainedStep:
        models = self._models
        if replayed is replay_step and now.step.index in self._audited:
            models.train.engine.audit()
        return replayed(
            self._task,
            now,
            models.train,
            now.step.moved,
            device=models.device,
            budget=self._budget,
        )

    def _added(self, now: Transition, trained: TrainedStep) -> float:
        """Return ``Σ_i ‖c_i g_i‖`` of a step."""
        t = now.step.index
        if t not in self._sums:
            batches = trained.batches or self.train(now).batches
            names = set(now.step.moved)
            norms = [squared_norms(batch, names & batch.names).sqrt().sum() for batch in batches]
            self._sums[t] = float(sum(norms))
        return self._sums[t]

    def _transition(self, t: int) -> Transition:
        """Read step ``t``; a state that the last step had is not read again."""
        states = {k: self._states.get(k) or state(self._log, k) for k in (t, t + 1)}
        self._states = states
        return Transition(self._log.step(t), states[t], states[t + 1])
