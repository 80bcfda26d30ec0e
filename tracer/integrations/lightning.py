"""Tracing the training of a Lightning ``Trainer``: one line before ``trainer.fit()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracer.errors import TracingError, shown
from tracer.integrations.carried_ids import Carried, carrying, check_rows
from tracer.integrations.checkpoints import check_checkpoint, check_new
from tracer.integrations.lightning_limits import check_fit, check_trainer, package_of
from tracer.integrations.loss_weights import BatchWeights
from tracer.integrations.replacing import Replaced
from tracer.integrations.training_step import TrainingStep
from tracer.joined import members
from tracer.records import ID
from tracer.wrapper.optimizer import TracingOptimizer
from tracer.wrapper.traced import Traced

STEP = "tracin_step"  # in a checkpoint, where its own count is another


def trace(
    trainer: Any,
    log: str | Path,
    *,
    task: Any = None,
    ids: Sequence[ID] | None = None,
    items: Callable[[Any], Tensor] | None = None,
    reduction: str = "mean",
    record: str = "ids",
    snapshot_every: int | str = "auto",
    check_steps: int | None = None,
    overwrite: bool = False,
) -> None:
    """Log every step of the next ``trainer.fit()``; training is what it is without.

    IDs travel inside the batches. In automatic optimization the weights of the examples are what
    the Trainer makes of a mean over the batch: it divides by ``accumulate_grad_batches``. A run
    that goes on from a checkpoint, ``fit(ckpt_path=...)``, goes on with the log, too.

    Args:
        trainer: A ``Trainer`` of ``lightning`` or ``pytorch_lightning``.
        log: Path of the log.
        task: The replay task, or its name; see ``TracingOptimizer``.
        ids: One for each example of the training data; default: what the sampler draws, the
            positions.
        items: Says for the batch of ``training_step`` of how many items, such as tokens, each
            example's loss is the mean, ``(b,)``; default: one each, and the labels that are not
            -100 where the batch is a mapping with ``labels``.
        reduction: ``"mean"`` or ``"sum"``: how the loss joins the examples' losses.
        record: ``"batches"`` where the batches are drawn at random or changed on their way.
        snapshot_every: See ``TracingOptimizer``.
        check_steps: See ``TracingOptimizer``.
        overwrite: Replace an existing log.

    Raises:
        TracingError: The trainer does what cannot be traced; says what.
    """
    package = package_of(trainer)
    check_trainer(trainer)
    if record not in ("ids", "batches"):
        raise TracingError(f'record must be "ids" or "batches" here, found {shown(record)}.')
    how = {
        "task": task,
        "reduction": reduction,
        "record": record,
        "snapshot_every": snapshot_every,
        "check_steps": check_steps,
        "overwrite": overwrite,
    }
    kind = type("Tracing", (_Tracing, import_module(package).Callback), {})
    tracing = kind(trainer, log, how, ids, items)
    tracing.put_on()
    trainer.callbacks.insert(0, tracing)  # before those that change parameters at the end


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
        self._weighing = BatchWeights(how["reduction"], items)
        self._traced: TracingOptimizer | None = None
        self._step: TrainingStep | None = None
        self._replaced = Replaced()
        self._here: list[ID] = []  # of the batch that is trained with
        self._batch: Any = None
        self._announced = False  # whether the step has a micro-batch
        self._going_on: int | None = None  # the step of a checkpoint, if it says that

    def put_on(self) -> None:
        """Replace what is needed besides the events."""
        strategy, precision = self._trainer.strategy, self._trainer.precision_plugin
        self._replaced.put(strategy, "process_dataloader", self._loader)
        self._replaced.put(precision, "convert_input", self._taken)
        self._replaced.put(strategy, "training_step", self._training_step)
        if type(precision).clip_grad_by_norm.__qualname__ == "Precision.clip_grad_by_norm":
            self._replaced.put(precision, "clip_grad_by_norm", self._clip)

    def _take_off(self) -> None:
        self._replaced.take_off()
        # another list: Lightning is going through this one
        self._trainer.callbacks = [c for c in self._trainer.callbacks if c is not self]

    def _loader(self, before: Callable[..., Any], loader: Any) -> Any:
        given = before(loader)
        return carrying(given, self._ids) if self._trainer.training else given

    def _taken(self, before: Callable[..., Any], batch: Any) -> Any:
        if isinstance(batch, Carried):
            self._here, batch = batch.ids, batch.batch
            if isinstance(batch, Mapping):
                check_rows(batch, self._here)
        return before(batch)

    def _training_step(self, before: Callable[..., Any], batch: Any, *rest: Any) -> Any:
        self._batch = batch
        return before(batch, *rest) if self._step is None else self._step(before, batch, *rest)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Wrap the optimizer: module, optimizer and checkpoint are what training begins with."""
        check_fit(trainer, module, self._items)
        known = trainer.global_step if self._going_on is None else self._going_on
        step = int(known) if trainer.ckpt_path else 0
        if step:
            check_checkpoint(self._log, step, module, "ckpt_path")
        else:
            check_new(self._log, "fit(ckpt_path=...)", overwrite=self._how["overwrite"])
        how = {**self._how, "resume": step, "overwrite": False} if step else self._how
        count = len(trainer.optimizers)
        given = trainer.optimizers if count > 1 else trainer.optimizers[0]
        steps = _left(trainer, step) if module.automatic_optimization else None
        self._step = TrainingStep(module)
        with torch.random.fork_rng():
            traced = TracingOptimizer(given, self._step, self._log, steps=steps, **how)
        self._traced = traced
        if not module.automatic_optimization:
            self._step.turns = traced.turns()
            self._replaced.put(trainer.strategy, "optimizer_step", self._step.optimizer_step)
        if step:
            traced.flush(state=True)  # again from here, if the run is killed before it saves
        traced.epoch = trainer.current_epoch
        trainer.strategy.optimizers = [traced[k] for k in range(count)] if count > 1 else [traced]

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Tell the log which epoch it is."""
        if self._traced is not None:
            self._traced.epoch = trainer.current_epoch

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        """Announce the micro-batch that a loss is of."""
        turns = None if self._step is None else self._step.turns
        if turns is None:
            self._announce(self._weights(module, len(self._here)))
        else:
            turns.backward(loss, self._here, self._recorded())

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Announce a batch without a loss, if there is no other in the step."""
        if not self._announced and module.automatic_optimization:
            self._announce(torch.zeros(len(self._here), dtype=torch.float64))
        self._announced = False

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        """Put a full state into the log where the Trainer has a checkpoint."""
        if self._traced is not None:
            self._traced.flush(state=True)
            step = self._traced.position[0]
            if step != trainer.global_step:  # Lightning counts steps of each optimizer
                checkpoint[STEP] = step

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        """Note the step of the log at which a run goes on."""
        self._going_on = checkpoint.get(STEP)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Close the log with what the last step led to, and leave the Trainer as it was."""
        self._end()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Close the log as it is."""
        self._end(type(exception))

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        """Leave a Trainer that did not train as it was."""
        if stage == "fit":
            self._end()

    def _announce(self, weights: Tensor | None) -> None:
        self._announced = True
        if self._traced is not None:
            self._traced.observe(self._here, weights, self._recorded())

    def _recorded(self) -> Any:
        return self._batch if self._how["record"] == "batches" else None

    def _weights(self, module: Any, count: int) -> Tensor | None:
        """Return what each example's loss counts; None is what the wrapper takes without."""
        parts = int(self._trainer.accumulate_grad_batches)
        return self._weighing.of(module, self._batch, count, parts)

    def _clip(self, before: Callable[..., Any], optimizer: Any, limit: Any) -> None:
        if self._traced is None:
            before(optimizer, limit)
        else:
            known = optimizer, getattr(optimizer, "optimizer", None)  # Lightning has it wrapped
            own = next((one for one in known if isinstance(one, Traced)), self._traced)
            own.clip_grad_norm_(limit)

    def _end(self, error: type[BaseException] | None = None) -> None:
        """Close the log, and give the Trainer its optimizer back."""
        self._take_off()
        if self._traced is None:
            return
        traced, self._traced, self._step = self._traced, None, None
        self._trainer.strategy.optimizers = members(traced.optimizer)
        traced.__exit__(error)


def _left(trainer: Any, step: int) -> int | None:
    """Return how many steps a Trainer will take from one on; None if it does not know."""
    left = trainer.estimated_stepping_batches - step
    return max(1, int(left)) if math.isfinite(left) else None
