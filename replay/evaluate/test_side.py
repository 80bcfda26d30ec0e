"""The test side: gradients and float64 values of ``φ`` for one chunk of test examples.

``φ`` is defined for each example alone, in eval mode. Examples are evaluated together only where
``are_independent`` found that the other examples change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from replay.evaluate.batches import Batches, Shelf
from replay.evaluate.binding import BoundModel, Models, without_graph
from replay.evaluate.checked import checked_losses
from replay.evaluate.state import State
from replay.gradients.forms.per_example import PerExample
from replay.gradients.proof.forward_pass import run
from replay.gradients.proof.independence import differ, some_of
from replay.task import Task
from tracer.errors import TaskError
from tracer.records import ID

T = TypeVar("T")


class Examples:
    """Some examples of one side, evaluated in eval mode.

    Args:
        task: The task.
        ids: Their IDs.
        side: ``"test"`` (measured by ``task.measure``) or ``"train"`` (by ``task.loss``).
        models: The bound copies.
        shelf: Where their batches are kept; by default as long as they are.
    """

    def __init__(
        self, task: Task, ids: Sequence[ID], side: str, models: Models, shelf: Shelf | None = None
    ) -> None:
        self.ids = list(ids)
        self.batches = Batches(task, self.ids, side, models.device, shelf or Shelf(0))
        self._models = models
        measured = side == "test" and task.measure is not None
        self._function = task.measure if measured and task.measure else task.loss
        self._called = "task.measure" if measured else "task.loss"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_double(self) -> bool:
        """Whether gradients are float64."""
        return all(
            p.dtype == torch.float64
            for p in self._models.test.parameters.values()
            if p.is_floating_point()
        )

    def storages(self) -> set[int]:
        """Return where the parameters lie that gradients are taken of."""
        parameters = self._models.test.parameters.values()
        return {p.untyped_storage().data_ptr() for p in parameters}

    def audit(self) -> None:
        """Prove how gradients are read again at the next pass."""
        self._models.test.engine.audit()

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
        bound = self._at(self._models.test, state)
        found = _moving(bound, names)
        return bound.engine.of_independent(
            found,
            lambda: self._tracked(bound, chosen, where),
            lambda i: self._tracked(bound, [chosen[i]], where),
            agree=lambda: self._agree(state, where, chosen),
            where=where,
        )

    def values(self, state: State, where: str, columns: list[int] | None = None) -> Tensor:
        """Return ``φ`` of each example (or of some columns) at a state, float64 ``(m,)``."""
        chosen = list(range(len(self))) if columns is None else columns
        bound = self._at(self._models.value, state)
        return self._in_float64(where, lambda: self._plain(bound, chosen, where))

    def _at(self, bound: BoundModel, state: State) -> BoundModel:
        bound.load(state.parameters, state.buffers)
        bound.module.eval()
        return bound

    def _plain(self, bound: BoundModel, columns: list[int], where: str) -> Tensor:
        return without_graph(lambda: self._losses(bound, columns, where)).double()

    def _tracked(self, bound: BoundModel, columns: list[int], where: str) -> Tensor:
        losses = self._losses(bound, columns, where)
        if not losses.requires_grad:
            raise TaskError(
                f"{where}: {self._called} has no gradient; it must be a differentiable "
                "function of the model's parameters (no detach, no argmax, no no_grad)."
            )
        return losses

    def _losses(self, bound: BoundModel, columns: list[int], where: str) -> Tensor:
        batch, ids = self.batches.of(columns, bound.dtype), [self.ids[j] for j in columns]
        return checked_losses(
            self._function(bound.module, batch), ids, function=self._called, where=where
        )

    def _in_float64(self, where: str, job: Callable[[], T]) -> T:
        try:
            return job()
        except (RuntimeError, TypeError) as error:
            if self._models.value.dtype is None:
                raise
            raise TaskError(
                f"{where}: evaluating {self._called} in float64 failed ({error}). If the model "
                'cannot run in float64, take its own dtype: values="model" (--values model).'
            ) from error

    def are_independent(self, state: State, where: str) -> bool:
        """Return whether values of all examples, gradients of some are the same alone.

        Raises:
            TaskError: Values are random in eval mode: they have no trajectory.
        """
        joint, bound = self.values(state, where), self._models.value
        alone = torch.cat([self._plain(bound, [j], where) for j in range(len(self))])
        again = self._plain(bound, [0], where)
        exact = bound.dtype == torch.float64
        tolerance = (1e-9 if exact else 1e-3) * (1 + alone.abs())
        if bool((again - alone[:1]).abs() > tolerance[:1]):
            raise TaskError(
                f"{where}: {self._called} of example {self.ids[0]!r} gave {alone[0]:.6g} and then "
                f"{again.item():.6g}: it is random in eval mode, so loss differences mean nothing."
            )
        if len(self) == 1:
            return True
        same = bool(((joint - alone).abs() <= tolerance).all())
        return same and self._agree(state, where, list(range(len(self))))

    def _agree(self, state: State, where: str, chosen: list[int]) -> bool:
        """Return whether gradients of a few examples are the same alone, as finely as values."""
        bound = self._at(self._models.value, state)

        def agree() -> bool:
            found = run(_moving(bound), lambda: self._tracked(bound, chosen, where), None)
            names, columns = list(found.parameters), some_of(len(chosen))
            ours = [found.own(i, names) for i in columns]  # before the model is run again
            return not differ(
                found, ours, lambda i: self._tracked(bound, [chosen[i]], where), columns
            )

        with torch.enable_grad():
            return self._in_float64(where, agree)


def _moving(bound: BoundModel, names: Collection[str] | None = None) -> dict[str, Tensor]:
    return {
        n: p
        for n, p in bound.parameters.items()
        if p.requires_grad and (names is None or n in names)
    }
