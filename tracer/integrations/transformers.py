"""Tracing the training of a Hugging Face ``Trainer``: one line before ``trainer.train()``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tracer.errors import TracingError, shown
from tracer.integrations.carried_ids import carry_ids, in_mapping, taken_ids
from tracer.integrations.checkpoints import check_checkpoint, check_new
from tracer.integrations.loss_weights import LossWeights, items_of, measured
from tracer.integrations.replacing import Replaced
from tracer.integrations.trainer_limits import check_trainer
from tracer.records import ID, RandomState
from tracer.watch.state_capture import random_state
from tracer.wrapper.optimizer import TracingOptimizer


def trace(
    trainer: Any,
    log: str | Path,
    *,
    task: Any = None,
    ids: Sequence[ID] | None = None,
    items: Callable[[Any], Tensor] | None = None,
    record: str = "ids",
    snapshot_every: int | str = "auto",
    check_steps: int | None = None,
    overwrite: bool = False,
) -> None:
    """Log every step of the next ``trainer.train()``; training is what it is without.

    IDs travel inside the batches. The weights of the examples are by what the Trainer divides its
    loss. A run that goes on from a checkpoint of the Trainer's goes on with the log, too.

    Args:
        trainer: A ``transformers.Trainer``, complete: trace it last.
        log: Path of the log.
        task: The replay task, or its name; see ``TracingOptimizer``.
        ids: One for each example of ``train_dataset``; default: the positions.
        items: Says for the inputs of a micro-batch of how many items, such as tokens, each
            example's loss is the mean, ``(b,)``; default: the labels that are not -100, shifted
            as causal language models do.
        record: ``"batches"`` where the collator draws at random, as that of masked language models.
        snapshot_every: See ``TracingOptimizer``.
        check_steps: See ``TracingOptimizer``.
        overwrite: Replace an existing log.

    Raises:
        TracingError: The trainer does what cannot be traced; says what.
    """
    check_trainer(trainer, record, task)
    if record not in ("ids", "batches"):
        raise TracingError(f'record must be "ids" or "batches" here, found {shown(record)}.')
    how = {"record": record, "snapshot_every": snapshot_every, "check_steps": check_steps}
    tracing = _Tracing(trainer, log, {"task": task, "overwrite": overwrite, **how}, ids, items)
    tracing.put_on()
    trainer.add_callback(tracing)


class _Tracing:
    """A callback, and what stands in a Trainer where there is none, until it has trained."""

    def __init__(
        self,
        trainer: Any,
        log: str | Path,
        how: dict[str, Any],
        ids: Sequence[ID] | None,
        items: Callable[[Any], Tensor] | None,
    ) -> None:
        self._trainer, self._log, self._how = trainer, Path(log), how
        self._ids, self._items = ids, items
        self._traced: TracingOptimizer | None = None
        self._weights: LossWeights | None = None
        self._replaced = Replaced()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(name)

    def put_on(self) -> None:
        """Replace what is needed besides the events."""
        trainer = self._trainer
        replace = self._replaced.put
        replace(trainer, "get_train_dataloader", self._loader)
        replace(trainer, "training_step", self._micro_batch)
        replace(trainer, "train", self._train)
        if hasattr(trainer, "_load_best_model"):
            replace(trainer, "_load_best_model", self._load_best)
        if hasattr(trainer, "accelerator"):
            replace(trainer.accelerator, "clip_grad_norm_", self._clip)

    def _take_off(self) -> None:
        self._replaced.take_off()
        self._trainer.remove_callback(self)

    def _train(self, before: Callable[..., Any], *args: Any, **named: Any) -> Any:
        try:
            result = before(*args, **named)
            self._end()
            return result
        except BaseException as error:
            self._end(type(error))
            raise
        finally:
            self._take_off()

    def _loader(self, before: Callable[..., Any], *args: Any, **named: Any) -> Any:
        loader = before(*args, **named)
        carry_ids(loader, self._ids, in_mapping)
        return loader

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wrap the optimizer: model, optimizer and checkpoint are what training begins with."""
        trainer, step = self._trainer, int(state.global_step)
        if step:
            check_checkpoint(self._log, step, trainer.model, "resume_from_checkpoint")
        else:
            again = "trainer.train(resume_from_checkpoint=True)"
            check_new(self._log, again, overwrite=self._how["overwrite"])
        holder = trainer.optimizer
        inner = getattr(holder, "optimizer", None)
        plain = inner if isinstance(inner, Optimizer) else holder
        how = {**self._how, "resume": step, "overwrite": False} if step else self._how
        with torch.random.fork_rng():  # the Trainer loads that of its checkpoint later
            traced = TracingOptimizer(
                plain, trainer.model_wrapped, self._log, steps=state.max_steps - step, **how
            )
        if step:
            traced.flush(state=True)  # again from here, if the run is killed before it saves
        if plain is inner:
            holder.optimizer = traced
        else:
            trainer.optimizer = traced
        self._traced = traced

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the log which epoch it is."""
        if self._traced is not None:
            self._traced.epoch = int(state.epoch or 0)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put a full state into the log where the Trainer has a checkpoint."""
        if self._traced is not None:
            self._traced.flush(state=True)

    def _micro_batch(self, before: Callable[..., Any], model: Any, inputs: Any, *rest: Any) -> Any:
        ids, total = taken_ids(inputs), rest[0] if rest else None
        random = random_state(_devices()) if self._weights is None else None
        loss = before(model, inputs, *rest)
        batches = getattr(self._trainer, "current_gradient_accumulation_steps", 1)
        if random is not None:
            self._weights = self._measured(model, inputs, loss, total, batches, random)
        if self._traced is not None and self._weights is not None:
            items = self._items or partial(items_of, self._trainer.model, count=len(ids))
            weights = self._weights.of(items(inputs), total, batches)
            batch = dict(inputs) if self._how["record"] == "batches" else None
            self._traced.observe(ids, weights, batch)
        return loss

    def _measured(
        self,
        model: Any,
        inputs: Any,
        loss: Tensor,
        total: Any,
        batches: int,
        random: RandomState,
    ) -> LossWeights:
        """Find by what the Trainer divides; model and generators are left as they are."""
        trainer = self._trainer

        def again(total: Any) -> Tensor:
            buffers = [(b, b.clone()) for b in model.buffers()]
            with torch.no_grad(), torch.random.fork_rng(), trainer.compute_loss_context_manager():
                torch.set_rng_state(random.cpu)
                for device, state in random.cuda.items():
                    torch.cuda.set_rng_state(state, device)
                given = trainer._prepare_inputs(inputs)
                found: Tensor = trainer.compute_loss(model, given, num_items_in_batch=total)
                for buffer, kept in buffers:
                    buffer.copy_(kept)
            return found

        return measured(loss, again, total, batches)

    def _clip(self, before: Callable[..., Any], parameters: Any, max_norm: Any, *rest: Any) -> Any:
        norm = before(parameters, max_norm, *rest)
        if self._traced is not None and norm is not None:
            self._traced.clipped(norm, max_norm)
        return norm

    def _load_best(self, before: Callable[..., Any], *args: Any, **named: Any) -> Any:
        self._end()  # with what the last step led to
        return before(*args, **named)

    def _end(self, error: type[BaseException] | None = None) -> None:
        """Close the log, and give the trainer its optimizer back."""
        if self._traced is None:
            return
        traced, self._traced = self._traced, None
        traced.__exit__(error)
        if self._trainer.optimizer is traced:
            self._trainer.optimizer = traced.optimizer
        else:
            self._trainer.optimizer.optimizer = traced.optimizer


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def _nothing(*args: Any, **named: Any) -> None:
    """Do nothing at an event."""
