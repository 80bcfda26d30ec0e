"""The training side of a run, step by step: forwards, or backwards within a budget of memory.

A rule with a memory is split backwards (see ``adjoint``), but the parts of its steps and Adam's
denominators are found forwards. So steps are recorded forwards, as many as the budget holds, and
walked backwards; a longer window is cut into pieces that are recorded again from the optimizer's
state at their beginning, pieces of pieces where even those states are too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from replay.evaluate.state import Transition
from replay.evaluate.test_side import Models
from replay.evaluate.train_side import TrainedStep
from replay.steps.clipping import ClipFactors
from replay.steps.optimizer_state import Memory
from replay.steps.replayed_step import Recorded
from replay.steps.replayer import StepRecorder
from replay.steps.schedule import Outlook, Room, cuts, outlook, room_for
from replay.task import Task
from tracer.errors import UnsupportedRuleError
from tracer.log.read.run_log import RunLog
from tracer.rules.table import RULES


class Tape:
    """Replays the training side of the steps of a window.

    Args:
        log: The run.
        task: Its task.
        models: The bound copies.
        window: The steps, consecutive.
        budget: Bytes for what is recorded.
        lenient: Go on where a step does not reproduce.
        splits: Whether steps are to be split; else no more than examples' gradients is asked for.
        report: Gets a description and a total, returns what to call at each step recorded.

    Attributes:
        plain: Whether no step remembers another: SGD without momentum throughout, or no split.
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
        splits: bool = True,
        report: Callable[[str, int], Callable[[], None]],
    ) -> None:
        name = str(log.metadata["update_rule"])
        rule = RULES.get(name)
        if splits and rule is None:
            raise UnsupportedRuleError(
                f"the steps of {log.path} were made by {name}, whose update cannot be split; those "
                f"of {', '.join(RULES)} can. tracincp, tracin-sgd and the measured drops "
                "(Replay.drops) work for every optimizer."
            )
        self._window, self._budget, self.stop = window, budget, window.stop
        self.plain = rule is None or not rule.remembers(log.ever_used)
        ends = {window[0], window[-1]}  # examples that are seen first and last are proven
        self._recorder = StepRecorder(
            log, task, models, rule, audited=ends, budget=budget, lenient=lenient
        )
        self._test = models.test.engine
        self._report, self._furthest = report, -1
        self._advance: Callable[[], None] | None = None
        self._kept: list[Recorded] | None = None
        self._first: tuple[Memory, Room] | None = None

    @property
    def factors(self) -> ClipFactors:
        """What found how gradients were clipped."""
        return self._recorder.factors

    def walk(self) -> Iterator[Recorded]:
        """Yield every step: forwards if they are independent (``plain``), else backwards."""
        last = self._window[-1 if self.plain else 0]
        for recorded in self._walk():
            if recorded.transition.step.index == last:
                self._test.audit()
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
        memory, room = self._first
        yield from self._backwards(start, stop, memory, room)

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
        return self._recorder.train(transition)

    def _before_window(self) -> Memory:
        """Return the optimizer before the window, all of its buffers history."""
        start = self._window.start
        assert self._recorder.stored is not None
        at, memory = self._recorder.stored.before(start)
        self._advance = self._report("recording", self._window.stop - at)
        for t in range(at, start):
            _, memory = self._record(t, memory, keep=False)
        return memory.as_history()

    def _begin(self) -> None:
        """Find out what the budget holds; record the window if it holds all of it."""
        memory = self._before_window()
        size, examples = self._measured(memory)
        if (size + examples) * len(self._window) > self._budget:
            self._first = memory, room_for(self._budget, size, examples)
            return
        self._kept = []
        for t in self._window:
            recorded, memory = self._record(t, memory, keep=True)
            self._kept.append(recorded)

    def outlook(self) -> Outlook:
        """Return what recording the window will take, from its first step."""
        if self.plain:
            return Outlook(0, 0)
        size, examples = self._measured(self._before_window())
        whole = (size + examples) * len(self._window)
        if whole <= self._budget:
            return Outlook(0, int(whole))
        room = room_for(self._budget, size, examples)
        return outlook(len(self._window), size, examples, room)

    def _measured(self, memory: Memory) -> tuple[int, float]:
        """Return the bytes of a recorded step and of its examples' gradients, of the first."""
        recorded, _ = self._record(self._window.start, memory, keep=True)
        return recorded.nbytes, math.inf if recorded.trained is None else recorded.trained.nbytes

    def _backwards(self, start: int, stop: int, memory: Memory, room: Room) -> Iterator[Recorded]:
        """Yield steps backwards; ``memory`` is the optimizer's before the first."""
        starts = cuts(start, stop, room)
        if len(starts) == 1:
            found = []
            for t in range(start, stop):
                recorded, memory = self._record(t, memory, keep=room.keeps)
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
            yield from self._backwards(begin, stop, memories.pop(), room)
            stop = begin

    def _record(self, t: int, memory: Memory, *, keep: bool) -> tuple[Recorded, Memory]:
        recorded, after = self._recorder.record(t, memory, keep=keep)
        if t > self._furthest and self._advance is not None:
            self._furthest = t
            self._advance()
        if t + 1 == self.stop and not self.plain:
            self._recorder.checked(after, self.stop)  # the last state is in the log, too
        return recorded, after
