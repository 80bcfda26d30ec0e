"""The test side: gradients and float64 values of ``φ`` for one chunk of test examples.

``φ`` is defined for each example alone, in eval mode. Examples are evaluated together only where
``looks`` found that the other examples change nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from replay.evaluate.batches import Batches, Shelf
from replay.evaluate.binding import BoundModel, Models, without_graph
from replay.evaluate.checked import checked_losses, in_dtype
from replay.evaluate.companies import apart, are_same, some_alone
from replay.evaluate.state import State
from replay.gradients.forms.per_example import PerExample
from replay.gradients.proof.forward_pass import run
from replay.losses import all_losses, loss_of_step
from replay.task import Task
from tracer.errors import GradientError, TaskError
from tracer.records import ID, Seeds

T = TypeVar("T")


class Examples:
    """Some examples of one side, evaluated in eval mode.

    Args:
        task: The task.
        ids: Their IDs.
        side: ``"test"`` (measured by ``task.measure``) or ``"train"`` (by ``task.loss``).
        models: The bound copies.
        shelf: Where their batches are kept; by default as long as they are.
        seeds: As ``Batches`` takes them.

    Attributes:
        among: How many are asked for in all, in chunks of which these are one.
        compares: Compare them in other company at every state (see ``company``).
    """

    def __init__(
        self,
        task: Task,
        ids: Sequence[ID],
        side: str,
        models: Models,
        shelf: Shelf | None = None,
        seeds: Seeds | None = None,
    ) -> None:
        self.ids = list(ids)
        self.batches = Batches(task, self.ids, side, models.device, shelf or Shelf(0), seeds)
        self.models, self.among = models, len(self.ids)
        self.compares, self._turn = False, 0
        self._compared: list[tuple[State, list[int]]] = []
        measured = side == "test" and task.measure is not None
        self.function = task.measure if measured and task.measure else all_losses(task.loss)
        self._task, self._by_step = task, dict[tuple[str, ...], Examples]()
        self.called = "task.measure" if measured else "task.loss"

    def of_step(self, optimizers: tuple[str, ...]) -> Examples:
        """Return the same examples with the loss of a step of some of the run's optimizers.

        Args:
            optimizers: Their names.

        Raises:
            TaskError: There is none.
        """
        if not isinstance(self._task.loss, Mapping):
            return self
        if optimizers not in self._by_step:
            self._by_step[optimizers] = own = copy.copy(self)
            own.function, own._compared = loss_of_step(self._task.loss, optimizers), []
        return self._by_step[optimizers]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_double(self) -> bool:
        """Whether gradients are float64."""
        return all(
            p.dtype == torch.float64
            for p in self.models.test.parameters.values()
            if p.is_floating_point()
        )

    def storages(self) -> set[int]:
        """Return where the parameters lie that gradients are taken of."""
        parameters = self.models.test.parameters.values()
        return {p.untyped_storage().data_ptr() for p in parameters}

    def audit(self) -> None:
        """Prove how gradients are read again at the next pass."""
        self.models.test.engine.audit()

    def gradients(
        self,
        state: State,
        where: str,
        columns: list[int] | None = None,
        names: Collection[str] | None = None,
    ) -> PerExample:
        """Return ``∇φ`` of each example (or of some columns) at a state.

        Args:
            state: Where.
            where: For messages.
            columns: Which examples; None is all.
            names: With respect to which parameters; None is all.

        Raises:
            GradientError: They depend on which others are evaluated with them.
        """
        chosen = list(range(len(self))) if columns is None else columns
        if self.compares and not self._is_compared(state, chosen):
            self.values(state, where, chosen)
        bound = self._at(self.models.test, state)
        found = bound.moving(names)
        return bound.engine.of_independent(
            found,
            lambda: self.tracked(bound, chosen, where),
            lambda i: self.tracked(bound, [chosen[i]], where),
            agree=lambda: self.agree(state, where, chosen),
            where=where,
        )

    def values(self, state: State, where: str, columns: list[int] | None = None) -> Tensor:
        """Return ``φ`` of each example (or of some columns) at a state, float64 ``(m,)``."""
        chosen = list(range(len(self))) if columns is None else columns
        bound = self._at(self.models.value, state)
        found = self.plain(bound, chosen, where)
        if self.compares and not self._is_compared(state, chosen):
            self._compare(bound, found, chosen, where)
            self._compared = [*self._compared[-3:], (state, chosen)]
        return found

    def _is_compared(self, state: State, columns: list[int]) -> bool:
        return any(
            one.parameters is state.parameters and one.buffers is state.buffers and some == columns
            for one, some in self._compared
        )

    def _compare(self, bound: BoundModel, found: Tensor, columns: list[int], where: str) -> None:
        """Raise GradientError if values in other company are not the same."""
        self._turn += 1
        for some in apart(len(columns), self._turn):
            again = self.plain(bound, [columns[k] for k in some], where)
            if not bound.is_close(again, found[some]):
                raise GradientError(
                    f"{where}: {self.called} of an example depends on which others are evaluated "
                    "with it in eval mode (experts with a capacity, padding, statistics of the "
                    "batch), which did not show at the first, middle and last state.\n"
                    "  1. Evaluate each example alone: memory=1 (--memory 1).\n"
                    "  2. Or let the model treat examples apart in eval mode."
                )

    def _at(self, bound: BoundModel, state: State) -> BoundModel:
        bound.load_for_eval(state)
        return bound

    def plain(self, bound: BoundModel, columns: list[int], where: str) -> Tensor:
        """Return values of some examples in one pass, in eval mode at what is loaded."""

        def run() -> Tensor:
            return without_graph(lambda: self.losses(bound, columns, where)).double()

        return self.in_float64(where, run) if bound is self.models.value else run()

    def tracked(self, bound: BoundModel, columns: list[int], where: str) -> Tensor:
        """Return the same with its graph."""
        losses = self.losses(bound, columns, where)
        if not losses.requires_grad:
            raise TaskError(
                f"{where}: {self.called} has no gradient; it must be a differentiable "
                "function of the model's parameters (no detach, no argmax, no no_grad)."
            )
        return losses

    def losses(self, bound: BoundModel, columns: list[int], where: str) -> Tensor:
        """Return ``φ`` of some examples, as the task's function gives it, shape checked."""
        bound.eval_mode.renew()
        batch, ids = self.batches.of(columns, bound.dtype), [self.ids[j] for j in columns]
        return checked_losses(
            self.function(bound.module, batch), ids, function=self.called, where=where
        )

    def in_float64(self, where: str, job: Callable[[], T]) -> T:
        """Do something with the copy that values are taken of, maybe in another dtype."""
        with in_dtype(self.models.value.dtype, self.called, where):
            return job()

    def agree(
        self, state: State, where: str, chosen: list[int], values: Tensor | None = None
    ) -> bool:
        """Return whether values and gradients are the same in other company, as finely as values.

        A few of the examples are alone there, and the others apart.

        Args:
            state: Where.
            where: For messages.
            chosen: Columns of the examples.
            values: What values must be; None are those of all chosen together.
        """
        bound = self._at(self.models.value, state)

        def again(some: list[int]) -> Tensor:
            return self.tracked(bound, [chosen[k] for k in some], where)

        def same() -> bool:
            found = run(bound.moving(), lambda: self.tracked(bound, chosen, where), None, where)
            expected = found.losses.detach().double() if values is None else values

            def is_close(losses: Tensor, some: list[int]) -> bool:
                return bound.is_close(losses.detach().double(), expected[some])

            return are_same(found, again, some_alone(len(chosen)), is_close)

        with torch.enable_grad():
            return self.in_float64(where, same)
