"""One pass over the run for a chunk of test examples: every step split, every drop measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from replay.evaluate.state import State, States, Transition
from replay.evaluate.test_side import Examples
from replay.evaluate.train_side import TrainedStep
from replay.gradients.forms import products
from replay.gradients.forms.per_example import PerExample
from replay.methods import ideal, tracin
from replay.path.adjoint import Adjoint
from replay.path.step_path import Split, StepPath
from replay.steps.replayed_step import ReplayedStep
from replay.steps.tape import Tape
from tracer.records import ID

TERMS = (  # "elsewhere" only where a part of the parameters was chosen
    *("data", "regulariser", "history", "elsewhere", "buffers", "rounding", "residual"),
    "measured",
)


@dataclass(frozen=True)
class Drop:
    """Values of ``φ`` around one step, float64 ``(m,)``.

    Attributes:
        before: ``φ(w_t; β_t)``.
        moved: ``φ(w_{t+1}; β_t)``.
        after: ``φ(w_{t+1}; β_{t+1})``.
    """

    before: Tensor
    moved: Tensor
    after: Tensor

    @property
    def measured(self) -> Tensor:
        """``φ(w_t; β_t) − φ(w_{t+1}; β_{t+1})``."""
        return self.before - self.after


@dataclass(frozen=True)
class StepResult:
    """What a pass found at one step.

    Attributes:
        index: ``t``.
        ids: IDs of the occurrences, ``(b,)``.
        drop: Values of ``φ``.
        splits: The split of each method that has one.
        credits: By method, what each occurrence is credited with, float64 ``(b, m)``.
        restricted: Whether products were taken over a part of the parameters.
        snapshots: Gradients of the test examples at the states that ``Settings.snapshots`` names
            and this step begins with (or, the last one, leads to).
    """

    index: int
    ids: list[ID]
    drop: Drop
    splits: dict[str, Split]
    credits: dict[str, Tensor]
    restricted: bool
    snapshots: dict[int, PerExample]

    def predicted(self, method: str) -> Tensor:
        """Return a method's account of the drop, ``(m,)``: ``ideal``'s is the measured one."""
        if method == "ideal":
            return self.drop.measured
        split = self.splits.get(method)
        return self.credits[method].sum(0) if split is None else split.node.slope

    def terms(self, method: str) -> dict[str, Tensor]:
        """Return the terms of the completeness identity, each ``(m,)``."""
        zero = torch.zeros_like(self.drop.before)
        if method in self.splits:
            data, regulariser, history, rounding, *others = self.splits[method].node.parts
        else:
            data, regulariser, history, rounding = self.credits[method].sum(0), zero, zero, zero
            others = [zero] if self.restricted else []
        moved = self.drop.before - self.drop.moved
        explained = torch.stack([data, regulariser, history, rounding, *others]).sum(0)
        return {
            "data": data,
            "regulariser": regulariser,
            "history": history,
            **({"elsewhere": others[0]} if others else {}),
            "buffers": self.drop.moved - self.drop.after,
            "rounding": rounding,
            "residual": moved - explained,
            "measured": self.drop.measured,
        }


class Values:
    """``φ`` along the run, in either direction; each state is evaluated once."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._known: dict[int, Tensor] = {}

    def around(self, transition: Transition) -> Drop:
        """Return the values around a step; steps come in order, ascending or descending."""
        before, after, t = transition.before, transition.after, transition.step.index
        first, last = self._known.get(t), self._known.get(t + 1)
        if first is None:
            first = self._examples.values(before, transition.name)
        if last is None:  # the name of the state's own step: a NaN is reported where it shows
            last = self._examples.values(after, f"after {transition.name}")
        moved = last
        if not before.same_buffers(after):
            mixed = State(after.parameters, before.buffers)
            moved = self._examples.values(mixed, f"after {transition.name}")
        self._known = {t: first, t + 1: last}
        return Drop(first.cpu(), moved.cpu(), last.cpu())


@dataclass(frozen=True)
class Settings:
    """How steps are split.

    Attributes:
        methods: Those of ``"tracin"``, ``"ideal"``, ``"tracin-sgd"`` that were asked for.
        tolerance: ``ideal_tolerance``.
        names: Parameters over which products are taken; None is all.
        snapshots: States whose gradients others need, too; given where the step has them anyway.
    """

    methods: tuple[str, ...]
    tolerance: float | None
    names: frozenset[str] | None = None
    snapshots: frozenset[int] = frozenset()


def drops(states: States, examples: Examples) -> Iterator[Drop]:
    """Yield the measured drop of every step, for any optimizer."""
    values = Values(examples)
    for t in range(states.last):
        yield values.around(states.transition(t))


def steps(tape: Tape, examples: Examples, settings: Settings) -> Iterator[StepResult]:
    """Yield every step of a tape, split by every method, for one chunk of test examples.

    Where steps remember earlier ones they come in descending order.
    """
    values, ends = Values(examples), _Ends(examples)
    adjoints = {name: Adjoint(len(examples)) for name in settings.methods}
    for recorded in tape.walk():
        now = recorded.transition
        trained = recorded.trained or tape.train(now.step, now.before)
        drop = values.around(now)
        ends.move(now)
        line = StepPath(
            recorded,
            trained,
            examples,
            (partial(ends.get, 0), partial(ends.get, 1)),
            (drop.before, drop.moved),
            settings.names,
            keeps=not tape.plain or settings.names is not None,
            compares="ideal" in settings.methods,
        )
        splits = _splits(line, settings)
        credited = {}
        for name, split in splits.items():
            if not line.keeps:
                credited[name] = split.node.shares
                continue
            wanted = line.parts if line.later else []
            mean = line.mean(split.node)
            earned, parts = adjoints[name].credits(recorded, trained, mean, settings.names, wanted)
            credited[name] = earned
            if line.later:
                splits[name] = split.with_parts(parts)
        if "tracin-sgd" in settings.methods:
            found = _ignoring_the_optimizer(recorded, trained, ends.get(0), settings.names)
            credited["tracin-sgd"] = found
        restricted = settings.names is not None
        t = now.step.index
        snapshots = ends.known({t} if t + 1 < tape.stop else {t, t + 1}, settings.snapshots)
        yield StepResult(t, trained.ids, drop, splits, credited, restricted, snapshots)


def _splits(line: StepPath, settings: Settings) -> dict[str, Split]:
    methods: dict[str, Callable[[], Split]] = {
        "tracin": lambda: tracin.split(line),
        "ideal": lambda: ideal.split(line, settings.tolerance),
    }
    return {name: methods[name]() for name in settings.methods if name in methods}


def _ignoring_the_optimizer(
    recorded: ReplayedStep, trained: TrainedStep, test: PerExample, names: frozenset[str] | None
) -> Tensor:
    """Return ``η_t c_i ⟨q_t, g_i⟩``, the paper's formula whatever the optimizer, ``(b, m)``."""
    step = recorded.transition.step
    rates = {
        name: group.hyperparameters["lr"]
        for group in step.groups
        for name in group.names
        if name in recorded.filters and (names is None or name in names)
    }
    return torch.cat([products.inner(batch, test, rates) for batch in trained.batches]).cpu()


class _Ends:
    """Test gradients at both ends of a step, computed at most once and handed on."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._transition: Transition | None = None
        self._found: dict[int, PerExample] = {}  # by the state's number, buffers as in the step

    def move(self, transition: Transition) -> None:
        """Go to the next step, in either direction."""
        last, self._transition = self._transition, transition
        same = last is not None and last.before.same_buffers(transition.before)
        t = transition.step.index
        self._found = {k: g for k, g in self._found.items() if same and k in (t, t + 1)}

    def known(self, states: set[int], wanted: frozenset[int]) -> dict[int, PerExample]:
        """Return gradients at some states, by number, where buffers are the state's own."""
        now = self._transition
        assert now is not None
        t = now.step.index
        same = now.before.same_buffers(now.after)
        return {k: self.get(k - t) for k in sorted(states & wanted) if k == t or same}

    def get(self, u: int) -> PerExample:
        transition = self._transition
        assert transition is not None
        k = transition.step.index + u
        if k not in self._found:
            state = transition.after if u else transition.before
            at = State(state.parameters, transition.before.buffers)
            self._found[k] = self._examples.gradients(at, transition.name)
        return self._found[k]
