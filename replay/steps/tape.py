"""The training side of a run, step by step: forwards, or backwards within a budget of memory.

A rule with a memory is split backwards (see ``adjoint``), but the parts of its steps and Adam's
denominators are found forwards. So steps are replayed forwards, as many as the budget holds, and
walked backwards. A longer window is cut into segments, and segments of segments where even the
optimizer's states between them are too many; each is replayed again from the state before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from replay.evaluate.binding import Models
from replay.evaluate.proof import Proof
from replay.evaluate.state import States
from replay.evaluate.trained_step import TrainedStep
from replay.steps.clipping import ClipFactors
from replay.steps.divisible import require_division
from replay.steps.handed_steps import Sequences
from replay.steps.optimizer_state import OptimizerState
from replay.steps.replayed_step import ReplayedStep
from replay.steps.replayer import Replayer
from replay.steps.schedule import Capacity, Estimate, capacity_of, estimate, segment_starts, visits
from replay.task import Task
from tracer.rules.rule import UpdateRule


class Tape:
    """Replays the training side of the steps of a window.

    Args:
        states: The run's states.
        task: Its task.
        models: The bound copies.
        window: The steps, consecutive.
        rule: How steps are split; None is not at all.
        budget: Bytes for replayed steps.
        allow_mismatch: Go on where a step does not reproduce.
        splits: Whether optimizer steps are divided among examples; if not, only per-example
            gradients are computed.
        unrolls: Whether steps are differentiated: they come backwards, each with the optimizer
            before it and the sums of its gradients.
        proven: Steps of which the window is a part: gradients are proven at their ends; None is the
            window.
        report: Gets a description and a total, returns what to call at each step replayed.
        begin: Begins what processes of a host share that walk the same window.

    Attributes:
        states, task, models, rule, window: As given, and how steps are split; None is not at all.
        plain: Whether no step remembers another: SGD without momentum throughout, or no split.
        splits: Whether the rule can be split: steps are divided, and their moves compared.
        stop: The window's end.
        last: The step whose examples a walk proves, since it sees them last.

    Raises:
        UnsupportedRuleError: The rule cannot be split; names it.
    """

    def __init__(
        self,
        states: States,
        task: Task,
        models: Models,
        window: range,
        rule: UpdateRule | None,
        *,
        budget: int,
        allow_mismatch: bool,
        splits: bool = True,
        unrolls: bool = False,
        proven: range | None = None,
        report: Callable[[str, int], Callable[[], None]],
        begin: Sequences | None = None,
    ) -> None:
        log = states.log
        require_division(log, rule, splits=splits, unrolls=unrolls)
        self.states = states
        self.task, self.models, self.rule, self.window = task, models, rule, window
        self._budget, self.stop = budget, window.stop
        self.splits = rule is not None
        self.plain = rule is None or not (unrolls or rule.remembers(log.ever_used))
        whole = window if proven is None else proven
        self.last = whole[-1 if self.plain else 0]
        ends = {whole[0], whole[-1]}  # examples that are seen first and last are proven
        if len({_sizes(states, t) for t in whole[-2:]}) > 1:  # the last batch is a short one
            ends.add(whole[-2])
        self._replayer = Replayer(
            states,
            task,
            models,
            rule,
            window=window,
            audited=ends,
            budget=budget,
            allow_mismatch=allow_mismatch,
            whole=unrolls,
            begin=begin,
        )
        self._report, self._furthest = report, -1
        self._advance: Callable[[], None] | None = None
        self._kept: list[ReplayedStep] | None = None
        self._first: tuple[OptimizerState, Capacity] | None = None

    @property
    def factors(self) -> ClipFactors:
        """What found how gradients were clipped."""
        return self._replayer.factors

    def trained(self) -> list[str]:
        """Return the parameters that any step of the window trains, in the model's order."""
        found = {name for t in self.window for name in self.states.step(t).trained}
        return [name for name in self.models.train.parameters if name in found]

    def proof(self) -> Proof | None:
        """Return how much of what was computed is the run's to the bit; see ``States``."""
        return self.states.proof()

    def walk(self) -> Iterator[ReplayedStep]:
        """Yield every step: forwards if they are independent (``plain``), else backwards."""
        return self.forwards() if self.plain else self._backwards()

    def forwards(self) -> Iterator[ReplayedStep]:
        """Yield every step with its examples' gradients, forwards."""
        optimizer = self._before_window()
        for t in self.window:
            replayed, optimizer = self._replay(t, optimizer, keep=True)
            yield replayed

    def checks(self) -> Iterator[int]:
        """Compare every step with the log, forwards, by its whole gradient alone; yield each."""
        optimizer = self._before_window()
        advance = self._report("verifying", len(self.window))
        for t in self.window:
            _, optimizer = self._replay(t, optimizer, keep=False)
            advance()
            yield t

    def trained_at(self, replayed: ReplayedStep) -> TrainedStep:
        """Return the gradients of a step's examples: kept with it, or computed again."""
        return replayed.trained or self._replayer.steps.of(replayed.transition.step.index)

    @property
    def is_kept(self) -> bool:
        """Whether memory holds all steps, which a walk backwards found."""
        return self._kept is not None

    @property
    def why(self) -> str | None:
        """Why gradients of steps are taken one by one; None if some are in one pass."""
        return self._replayer.steps.why

    def estimate(self) -> Estimate:
        """Return what replaying the window will take, from its first step."""
        if self.plain:
            return Estimate(0, 0)
        size, examples = self._measured(self._before_window())
        whole = (size + examples) * len(self.window)
        if whole <= self._budget:
            return Estimate(0, int(whole))
        capacity = capacity_of(self._budget, size, examples)
        return estimate(len(self.window), size, examples, capacity)

    def _before_window(self) -> OptimizerState:
        """Return the optimizer before the window, all of its buffers history."""
        if self.plain:
            return OptimizerState()
        start = self.window.start
        assert self._replayer.stored is not None
        at, optimizer = self._replayer.stored.before(start)
        self._advance = self._report("replaying", self.window.stop - at)
        self._replayer.steps.expect([*((t, False) for t in range(at, start)), (start, True)])
        for t in range(at, start):
            _, optimizer = self._replay(t, optimizer, keep=False)
        return optimizer.as_history()

    def _backwards(self) -> Iterator[ReplayedStep]:
        """Yield the window's steps backwards, from memory if it holds all of them."""
        if self._kept is None and self._first is None:
            self._begin()
        if self._kept is not None:
            yield from reversed(self._kept)
        elif self._first is not None:
            optimizer, capacity = self._first
            start, stop = self.window.start, self.window.stop
            self._replayer.steps.expect(list(visits(start, stop, capacity)))
            yield from self._by_segments(start, stop, optimizer, capacity)
        self._replayer.steps.expect(())

    def _begin(self) -> None:
        """Find out what the budget holds; replay the window if it holds all of it."""
        optimizer = self._before_window()
        size, examples = self._measured(optimizer)
        if (size + examples) * len(self.window) > self._budget:
            self._first = optimizer, capacity_of(self._budget, size, examples)
            return
        self._kept = []
        self._replayer.steps.expect([(t, True) for t in self.window])
        for t in self.window:
            replayed, optimizer = self._replay(t, optimizer, keep=True)
            self._kept.append(replayed)

    def _measured(self, optimizer: OptimizerState) -> tuple[int, float]:
        """Return the bytes of a replayed step and of its examples' gradients, of the first."""
        replayed, _ = self._replay(self.window.start, optimizer, keep=True)
        return replayed.nbytes, math.inf if replayed.trained is None else replayed.trained.nbytes

    def _by_segments(
        self, start: int, stop: int, optimizer: OptimizerState, capacity: Capacity
    ) -> Iterator[ReplayedStep]:
        """Yield steps backwards; ``optimizer`` is as it was before the first."""
        starts = segment_starts(start, stop, capacity)
        if len(starts) == 1:
            found = []
            for t in range(start, stop):
                replayed, optimizer = self._replay(t, optimizer, keep=capacity.keeps)
                found.append(replayed)
            while found:
                yield found.pop()
            return
        before = [optimizer]  # each segment
        for t in range(start, starts[-1]):
            _, optimizer = self._replay(t, optimizer, keep=False)
            if t + 1 in starts:
                before.append(optimizer)
        while starts:
            begin = starts.pop()
            yield from self._by_segments(begin, stop, before.pop(), capacity)
            stop = begin

    def _replay(
        self, t: int, optimizer: OptimizerState, *, keep: bool
    ) -> tuple[ReplayedStep, OptimizerState]:
        replayed, after = self._replayer.replay(t, optimizer, keep=keep)
        if t > self._furthest and self._advance is not None:
            self._furthest = t
            self._advance()
        if t + 1 == self.stop and not self.plain:
            self._replayer.checked(after, self.stop)  # the last state is on file, too
        return replayed, after


def _sizes(states: States, t: int) -> tuple[int, ...]:
    return tuple(len(micro.ids) for micro in states.log.step(t).micro_batches)
