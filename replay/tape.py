"""The training side of a run, step by step: forwards, or backwards within a budget of memory.

A rule with a memory is split backwards (see ``adjoint``), but the parts of its steps and Adam's
denominators are found forwards. So steps are recorded forwards, as many as the budget holds, and
walked backwards; a longer window is cut into pieces that are recorded again from the optimizer's
state at their beginning, pieces of pieces where even those states are too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from replay.checking import Checks
from replay.displacement import split
from replay.drive import drives
from replay.gradients.products import squared_norms
from replay.measured import Models
from replay.optimizer_state import Memory, StoredStates
from replay.recorded import Recorded, coupled_decay, moved_parameters, settings
from replay.segments import Outlook, cuts, outlook, room_for
from replay.task import Task
from replay.trained import TrainedStep, replay_gradient, replay_step
from replay.trajectory import State, Transition, state
from tracer.errors import UnsupportedRuleError
from tracer.reader import RunLog
from tracer.update_rules import RULES
from tracer.update_rules import State as Moments


class Tape:
    """Replays the training side of the steps of a window.

    Args:
        log: The run.
        task: Its task.
        models: The bound copies.
        window: The steps, consecutive.
        budget: Bytes for what is recorded.
        lenient: Go on where a step does not reproduce.
        report: Gets a description and a total, returns what to call at each step recorded.

    Attributes:
        plain: Whether no step remembers another: SGD without momentum throughout.
        checks: What was compared with the log.
        stop: The window's end.

    Raises:
        UnsupportedRuleError: The rule cannot be split; names it.
    """

    def __init__(
        self,
        log: RunLog,
        task: Task,
        models: Models,
        window: range,
        *,
        budget: int,
        lenient: bool,
        report: Callable[[str, int], Callable[[], None]],
    ) -> None:
        name = str(log.metadata["update_rule"])
        if name not in RULES:
            raise UnsupportedRuleError(
                f"the steps of {log.path} were made by {name}, whose update cannot be split; those "
                f"of {', '.join(RULES)} can. tracincp and the measured drops (Replay.drops) work "
                "for every optimizer."
            )
        self._rule, self._log, self._task, self._models = RULES[name], log, task, models
        self._window, self._budget, self.stop = window, budget, window.stop
        self.plain = name == "SGD" and not log.ever_used("momentum")
        self._stored = StoredStates(log, self._rule, models.device)
        same = models.test.dtype is None
        self.checks = Checks(str(log.path), same, lenient, {})
        self._report, self._furthest = report, -1
        self._advance: Callable[[], None] | None = None
        self._states: dict[int, State] = {}
        self._sums: dict[int, float] = {}
        self._kept: list[Recorded] | None = None
        self._first: tuple[Memory, int] | None = None

    def walk(self) -> Iterator[Recorded]:
        """Yield every step: forwards if they are independent (``plain``), else backwards."""
        last = self._window[-1 if self.plain else 0]
        for recorded in self._walk():
            if recorded.transition.step.index == last:
                self._models.test.engine.audit()
            yield recorded

    def _walk(self) -> Iterator[Recorded]:
        start, stop = self._window.start, self._window.stop
        if self.plain:
            memory = Memory()
            for t in self._window:
                recorded, memory = self._record(t, memory, keep=True)
                yield recorded
            return
        if self._kept is None and self._first is None:
            self._begin()
        if self._kept is not None:
            yield from reversed(self._kept)
            return
        assert self._first is not None
        memory, size = self._first
        yield from self._backwards(start, stop, memory, size)

    def forwards(self) -> Iterator[Recorded]:
        """Yield every step with its examples' gradients, forwards."""
        if self.plain:
            yield from self._walk()
            return
        memory = self._before_window()
        for t in self._window:
            recorded, memory = self._record(t, memory, keep=True)
            yield recorded

    def check(self) -> None:
        """Compare every step with the log, forwards, by its whole gradient alone."""
        memory = Memory() if self.plain else self._before_window()
        advance = self._report("verifying", len(self._window))
        for t in self._window:
            _, memory = self._record(t, memory, keep=False)
            advance()

    def train(self, transition: Transition) -> TrainedStep:
        """Compute the gradients of a step's examples."""
        return self._run(replay_step, transition)

    def _before_window(self) -> Memory:
        """Return the optimizer before the window, all of its buffers history."""
        start = self._window.start
        at, memory = self._stored.before(start)
        self._advance = self._report("recording", self._window.stop - at)
        for t in range(at, start):
            _, memory = self._record(t, memory, keep=False)
        return memory.as_history()

    def _begin(self) -> None:
        """Find out what the budget holds; record the window if it holds all of it."""
        memory = self._before_window()
        start = self._window.start
        recorded, _ = self._record(start, memory, keep=True)
        if self._whole(recorded) <= self._budget:
            self._kept = []
            for t in self._window:
                recorded, memory = self._record(t, memory, keep=True)
                self._kept.append(recorded)
        else:
            self._first = memory, recorded.nbytes

    def outlook(self) -> Outlook:
        """Return what recording the window will take, from its first step."""
        if self.plain:
            return Outlook(0, 0)
        recorded, _ = self._record(self._window.start, self._before_window(), keep=True)
        whole = self._whole(recorded)
        if whole <= self._budget:
            return Outlook(0, int(whole))
        return outlook(len(self._window), recorded.nbytes, room_for(self._budget, recorded.nbytes))

    def _whole(self, recorded: Recorded) -> float:
        """Return the bytes of all steps with their examples' gradients, if they are like one."""
        examples = math.inf if recorded.trained is None else recorded.trained.nbytes
        return (recorded.nbytes + examples) * len(self._window)

    def _backwards(self, start: int, stop: int, memory: Memory, size: int) -> Iterator[Recorded]:
        """Yield steps backwards; ``memory`` is the optimizer's before the first."""
        starts = cuts(start, stop, room_for(self._budget, size))
        if len(starts) == 1:
            found = []
            for t in range(start, stop):
                recorded, memory = self._record(t, memory, keep=False)
                found.append(recorded)
            while found:
                yield found.pop()
            return
        memories = [memory]
        for t in range(start, starts[-1]):
            _, memory = self._record(t, memory, keep=False)
            if t + 1 in starts:
                memories.append(memory)
        while starts:
            begin = starts.pop()
            yield from self._backwards(begin, stop, memories.pop(), size)
            stop = begin

    def _run(self, replayed: Callable[..., TrainedStep], now: Transition) -> TrainedStep:
        models = self._models
        if replayed is replay_step and now.step.index in (self._window[0], self._window[-1]):
            models.train.engine.audit()  # examples that are seen first and last are proven
        return replayed(
            self._task,
            now,
            models.train,
            moved_parameters(now.step),
            device=models.device,
            budget=self._budget,
        )

    def _record(self, t: int, memory: Memory, *, keep: bool) -> tuple[Recorded, Memory]:
        """Replay step ``t``; return it and what the optimizer remembers after it."""
        memory = self._stored.renewed(memory, t, self.checks)
        device = self._models.device
        now = self._transition(t)
        run = replay_step if keep else replay_gradient
        trained = self._run(run, now)
        added = partial(self._added, now, trained)
        kappas = self.checks.clip_factors(now.step, trained, added)
        numbers, factors = settings(now.step, kappas)
        decays = {name: coupled_decay(n) for name, n in numbers.items()}
        driven = drives(now, trained, decays, factors, device)
        moments: dict[str, Moments] = dict(memory.moments)
        filters = {}
        for name, n in numbers.items():
            if self._rule.adapts:
                known = moments.get(name) or self._rule.initial(driven[name].w, n)
                moments[name] = self._rule.observe(known, driven[name].whole, n)
            first = name not in memory.buffers
            filters[name] = self._rule.filter(moments.get(name, {}), n, first=first)
        dtype = self._models.test.dtype
        divided = split(now, driven, filters, memory.buffers, device, dtype)
        most = max((abs(factor) for factor in factors.values()), default=1.0)
        noise, unit = self.checks.step(now, filters, divided, memory.noise, lambda: most * added())
        if t > self._furthest and self._advance is not None:
            self._furthest = t
            self._advance()
        examples = trained.examples_only() if keep else None
        recorded = Recorded(now, filters, factors, divided.parts, examples)
        return recorded, Memory(moments, divided.buffers, noise, max(unit, memory.unit))

    def _added(self, now: Transition, trained: TrainedStep) -> float:
        """Return ``Σ_i ‖c_i g_i‖`` of a step."""
        t = now.step.index
        if t not in self._sums:
            batches = trained.batches or self._run(replay_step, now).batches
            names = set(moved_parameters(now.step))
            norms = [squared_norms(batch, names & batch.names).sqrt().sum() for batch in batches]
            self._sums[t] = float(sum(norms))
        return self._sums[t]

    def _transition(self, t: int) -> Transition:
        """Read step ``t``; a state that the last step had is not read again."""
        states = {k: self._states.get(k) or state(self._log, k) for k in (t, t + 1)}
        self._states = states
        return Transition(self._log.step(t), states[t], states[t + 1])
