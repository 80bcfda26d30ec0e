"""Tracing a loop of one's own on Hugging Face ``accelerate``: one line around it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracer.errors import TracingError, shown
from tracer.integrations.accelerate_limits import check_accelerator, check_loader
from tracer.integrations.carried_ids import Carried, carry_ids
from tracer.integrations.checkpoints import check_checkpoint, check_new
from tracer.integrations.loss_weights import BatchWeights
from tracer.integrations.on_its_way import Labelled
from tracer.integrations.prepared import Prepared
from tracer.integrations.replacing import Replaced
from tracer.records import ID
from tracer.wrapper.optimizer import TracingOptimizer

POSITION = "tracin.json"  # in a folder of save_state


def trace(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    log: str | Path,
    *,
    task: Any = None,
    ids: Sequence[ID] | None = None,
    items: Callable[[Any], Tensor] | None = None,
    reduction: str = "mean",
    record: str = "ids",
    snapshot_every: int | str = "auto",
    check_steps: int | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
) -> Tracing:
    """Log every step of a loop on an ``Accelerator``; training is what it is without.

    Call it after ``accelerator.prepare``, or before, and prepare ``Tracing.optimizer`` then. IDs
    travel inside the batches; ``accelerator.backward`` announces them, and the weights are what it
    makes of a mean over the batch: it divides by ``gradient_accumulation_steps``.

    Args:
        accelerator: The ``Accelerator``.
        model: The model, prepared or not.
        optimizer: The optimizer, prepared or not; of several that move the model all, in a list or
            by name, as for ``TracingOptimizer``. The loop steps each as accelerate prepared it.
        loader: The training loader, prepared or not.
        log: Path of the log.
        task: The replay task, or its name; see ``TracingOptimizer``.
        ids: One for each example of the training data; default: what the sampler draws, the
            positions.
        items: Says for a batch of how many items, such as tokens, each example's loss is the mean,
            ``(b,)``; default: one each, and the labels that are not -100, shifted as causal
            language models do, where the batch is a mapping with ``labels``.
        reduction: ``"mean"`` or ``"sum"``: how the loss joins the examples' losses.
        record: ``"batches"`` where the batches are drawn at random.
        snapshot_every: See ``TracingOptimizer``.
        check_steps: See ``TracingOptimizer``.
        resume: The folder of ``save_state`` that ``load_state`` has loaded: the log goes on there.
        overwrite: Replace an existing log.

    Returns:
        A context manager, which gives the traced optimizer and closes the log.

    Raises:
        TracingError: The accelerator does what cannot be traced; says what.
    """
    check_accelerator(accelerator)
    check_loader(loader)
    prepared = Prepared(accelerator, model, optimizer)
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
    tracing = Tracing(accelerator, model, prepared, how, items)
    leave_loader = carry_ids(loader, ids, Labelled(tracing.take))
    try:
        return tracing.begin(Path(log), resume, leave_loader)
    except BaseException:
        leave_loader()
        raise


class Tracing:
    """What ``trace`` returns: closes the log, and leaves accelerator and loader as they were.

    Attributes:
        optimizer: The ``TracingOptimizer``; set its ``epoch``, or prepare it.
    """

    optimizer: TracingOptimizer

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        prepared: Prepared,
        how: dict[str, Any],
        items: Callable[[Any], Tensor] | None,
    ) -> None:
        self._accelerator, self._model, self._how = accelerator, model, how
        self._prepared = prepared
        self._weighing = BatchWeights(how["reduction"], items)
        self._now: Carried | None = None  # the batch that the loop has
        self._replaced = Replaced()

    def begin(
        self, log: Path, resume: str | Path | None, leave_loader: Callable[[], None]
    ) -> Tracing:
        """Wrap the optimizer, and replace what is needed; see ``trace``."""
        accelerator, how = self._accelerator, self._how
        if resume is None:
            check_new(log, "trace(..., resume=FOLDER)", overwrite=how["overwrite"])
        else:
            step = _step_of(Path(resume), prepared=self._prepared.are_all)
            check_checkpoint(log, step, self._model, "resume=")
            how = {**how, "resume": step, "overwrite": False}
        with torch.random.fork_rng():  # load_state has put it back
            self.optimizer = TracingOptimizer(self._prepared.inner, self._model, log, **how)
        if resume is not None:
            self.optimizer.flush(state=True)  # again from here, if the run is killed
        self._prepared.put_in(self.optimizer)
        self._leave_loader = leave_loader
        self._hook = accelerator.register_save_state_pre_hook(self._save)
        self._replaced.put(accelerator, "backward", self._backward)
        self._replaced.put(accelerator, "clip_grad_norm_", self._clip)
        self._replaced.put(accelerator, "end_training", self._end_training)
        return self

    def take(self, carried: Carried) -> None:
        """Remember the batch that the loop is given next."""
        self._now = carried

    def __enter__(self) -> TracingOptimizer:
        return self.optimizer

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._leave_loader()
        self._hook.remove()
        self._replaced.take_off()
        self._prepared.take_out()
        self.optimizer.__exit__(kind)

    def close(self) -> None:
        """End the log; the optimizer that was prepared goes on without."""
        self.__exit__(None)

    def _backward(self, before: Callable[..., Any], loss: Any, **named: Any) -> Any:
        if self._now is not None:
            batch, ids = self._now.batch, self._now.ids
            given = batch if self._how["record"] == "batches" else None
            self.optimizer.observe(ids, self._weights(batch, len(ids)), given)
        return before(loss, **named)

    def _weights(self, batch: Any, count: int) -> Tensor | None:
        parts = int(self._accelerator.gradient_accumulation_steps)
        return self._weighing.of(self._model, batch, count, parts)  # or the loop divides by itself

    def _clip(self, before: Callable[..., Any], parameters: Any, max_norm: Any, *rest: Any) -> Any:
        clipped = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        norm = before(clipped, max_norm, *rest)
        (self._prepared.whose(clipped) or self.optimizer).clipped(norm, max_norm)
        return norm

    def _save(self, models: Any, weights: Any, folder: str) -> None:
        """Put a full state into the log, and its step beside the checkpoint."""
        self.optimizer.flush(state=True)
        found = {"step": self.optimizer.position[0]}
        (Path(folder) / POSITION).write_text(json.dumps(found) + "\n")

    def _end_training(self, before: Callable[..., Any]) -> Any:
        self.close()
        return before()


def _step_of(folder: Path, *, prepared: bool) -> int:
    """Return the step of a checkpoint.

    Raises:
        TracingError: It has none, or its state cannot have been loaded yet.
    """
    if not prepared:
        raise TracingError(
            "resume= needs what accelerator.prepare and load_state did.\n"
            "1. Call trace(..., resume=FOLDER) after accelerator.load_state(FOLDER)."
        )
    file = folder / POSITION
    if not file.exists():
        raise TracingError(
            f"the checkpoint {folder} has no {POSITION}, so the step of the log is not known: it "
            "was saved without trace(), or is another folder.\n"
            "1. Give the folder that accelerator.save_state wrote while it was traced."
        )
    return int(json.loads(file.read_text())["step"])
