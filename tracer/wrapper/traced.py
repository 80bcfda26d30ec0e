"""An optimizer whose steps are logged: what a training loop calls of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from tracer.joined import Joined, Key
from tracer.watch.captures import ALL
from tracer.wrapper.arguments import check_group
from tracer.wrapper.delegation import Delegating, extending
from tracer.wrapper.first_steps import FirstSteps
from tracer.wrapper.setup import Tracing
from tracer.wrapper.stepping import Call


class Traced(Delegating):
    """Takes and logs the steps of one optimizer of a traced run; all else is handed on to it.

    Args:
        optimizer: It does the steps.
        names: Of the model's parameters, by ``id``.
        tracing: The run.
        first: Checks its first steps.
        key: Which of several optimizers it is.
    """

    _tracing: Tracing

    def __init__(
        self,
        optimizer: Optimizer,
        names: Mapping[int, str],
        tracing: Tracing,
        first: FirstSteps,
        key: Key = ALL,
    ) -> None:
        super().__init__(optimizer)
        self._names, self._tracing, self._first, self._key = names, tracing, first, key

    def _hand_out(self) -> None:
        self._tracing.log.settle_early()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """A GradScaler asks this first; if no step follows, it skipped the step."""
        self._tracing.skips.scaler_asks()
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    @extending
    def step(self, *arguments: Any, batch_ids: Any = None, batch: Any = None, **named: Any) -> Any:
        """Take one optimizer step and log it.

        Args:
            *arguments: Passed on; as for any torch optimizer, the first may be a closure. IDs may
                be observed inside it.
            batch_ids: ID of each example in the batch, ``(b,)``, in order; not together with
                ``observe``.
            batch: With ``record="batches"``, what ``task.loss`` takes: tensors, numbers and text
                in tuples, lists and dicts.
            **named: Passed on.

        Raises:
            TracingError: The IDs are missing or wrong; nothing was stepped nor written.
        """
        now, call = self._tracing, Call(self.optimizer, arguments, named)
        epoch = now.epochs.now()
        now.log.require_open()
        if self._takes_part(call, batch_ids):
            return self._step_along(call)
        now.observations.step_begins(batch_ids, batch, self._key, closure=call.closure is not None)
        now.skips.step_begins()
        result, measured = now.log.step(call, now.observations.announced)
        now.forwards.require_own_gradients(self._key)
        if measured is not None:
            batches, factor = now.observations.announced(), now.forwards.clip_factor(self._key)
            now.log.keep(measured, batches, epoch=epoch, clip_factor=factor)
        now.observations.step_ended(taken=measured is not None)
        now.moment.step_ends(self._key, now.forwards.clip_factor(ALL))
        now.forwards.step_ended()
        now.forecasts.step_taken()
        self._first.step_taken(self._key)
        return result

    def _takes_part(self, call: Call, batch_ids: Any) -> bool:
        """Return whether a step is a part of the last one: on gradients that were there then."""
        now = self._tracing
        ready = call.closure is None or now.moment.idle_closures
        here = ready and now.moment.is_here(self._key)
        return here and now.observations.are_of_last_step(batch_ids, self._key)

    def _step_along(self, call: Call) -> Any:
        now = self._tracing
        now.skips.step_begins()
        result = now.log.step_along(call, now.moment.clip_factor)
        now.moment.taken_part(self._key)
        self._first.taken_together()
        return result

    def observe(self, batch_ids: Any, weights: Any = None, batch: Any = None) -> None:
        """Announce one micro-batch of the next step.

        Args:
            batch_ids: ID of each example, ``(b,)``, in order.
            weights: ``c_i``, each loss's weight in the step's objective, ``(b,)``; default:
                ``1/(k b)`` with k micro-batches for a mean, 1 for a sum.
            batch: With ``record="batches"``, what ``task.loss`` takes: tensors, numbers and text
                in tuples, lists and dicts.

        Raises:
            TracingError: The IDs or weights are wrong.
        """
        self._tracing.log.require_open()
        self._tracing.observations.observe(batch_ids, weights, batch)
        self._tracing.log.observed()

    @extending
    def zero_grad(self, *arguments: Any, **named: Any) -> None:
        """Reset gradients and drop observations whose gradients they are; all is passed on."""
        self._tracing.observations.gradients_zeroed(self._key)
        self._tracing.forwards.gradients_dropped(self._key)
        self.optimizer.zero_grad(*arguments, **named)
        self._tracing.forwards.captures.note_gradients(zeroed=True)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the gradient of all groups together and record the factor.

        Of several optimizers in the model's order, as of ``model.parameters()``: sums of squares
        in another order have other last bits.

        Args:
            max_norm: Largest norm.
            norm_type: As for ``torch.nn.utils.clip_grad_norm_``.

        Returns:
            The norm before clipping, a scalar tensor.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        if isinstance(self.optimizer, Joined):
            order = {key: place for place, key in enumerate(self._names)}
            parameters.sort(key=lambda p: order[id(p)])
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
        self.clipped(norm, max_norm)
        return norm

    def clipped(self, norm: Tensor, max_norm: float) -> None:
        """Record that torch clipped the gradients, with what it returned and was given."""
        self._tracing.forwards.clipped(max_norm, norm, self._key)

    @extending
    def add_param_group(self, *arguments: Any, **named: Any) -> None:
        """Add a group of parameters of the model; all is passed on."""
        for given in (*arguments, *named.values()):
            check_group(given, self._names)
        self.optimizer.add_param_group(*arguments, **named)
