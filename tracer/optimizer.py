"""TracingOptimizer and TracingSGD: a torch optimizer that logs every step it takes.

To every torch tool the wrapper is the optimizer: parameter groups, state and hooks are the
wrapped one's, and training is bitwise what it is without tracing.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracer.batch_ids import plain_ids
from tracer.errors import OutputExistsError, TracingError
from tracer.recording import Recorder, unwrapped
from tracer.records import MicroBatch
from tracer.step_logger import StepLogger


class TracingOptimizer(Optimizer):
    """Wraps any torch optimizer and logs each step to one HDF5 file.

    Args:
        optimizer: The optimizer; it does the steps.
        model: The module whose parameters it moves; may be compiled or wrapped.
        log: Path of the log.
        task: ``"package.module:name"`` or ``"file.py:name"`` of the replay task, kept in the log.
        reduction: ``"mean"`` or ``"sum"``: how the training loss joins the examples' losses.
        snapshot_every: Steps between parameter snapshots; this version writes every step's.
        record: ``"ids"``: what of a batch is logged.
        resume: Continue a killed run's log; not in this version.
        overwrite: Replace an existing log.

    Attributes:
        epoch: Set it in the loop to enable ``checkpoints="epochs"`` at replay.

    Raises:
        TracingError: An argument is of no use; the message says which.
        OutputExistsError: The log exists.
    """

    epoch: int | None

    def __init__(  # deliberately without Optimizer.__init__: the state is the wrapped one's
        self,
        optimizer: Optimizer,
        model: nn.Module,
        log: str | Path,
        *,
        task: str | None = None,
        reduction: str = "mean",
        snapshot_every: int = 1,
        record: str = "ids",
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        path = Path(log)
        _check_arguments(optimizer, model, task, reduction, snapshot_every, record, resume)
        if path.exists() and not overwrite:
            raise OutputExistsError(
                f"the log {path} exists; choose another path or pass overwrite=True."
            )
        inner = unwrapped(model)
        names = {id(p): name for name, p in inner.named_parameters()}
        _check_parameters(optimizer, names)
        self.optimizer, self.epoch = optimizer, None
        self._reduction = reduction
        self._observed: list[tuple[tuple[Any, ...], Any, Any]] = []
        self._clip_factor = 1.0
        self._recorder = Recorder(model, inner)
        attributes = {
            "task": task or "",
            "reduction": reduction,
            "snapshot_every": snapshot_every,
            "record": record,
            "optimizer": _qualified(type(optimizer)),
            "update_rule": _rule(type(optimizer)),
        }
        self._log = StepLogger(path, optimizer, inner, self._recorder, attributes)
        self._finalizer = weakref.finalize(self, _close, self._log, self._recorder)

    def __enter__(self) -> TracingOptimizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r}, log={str(self._log.path)!r})"

    def __getattr__(self, name: str) -> Any:
        if name in {"optimizer", "_log"}:
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        batch_ids: Any = None,
        batch: Any = None,
    ) -> Any:
        """Take one optimizer step and log it.

        Args:
            closure: As for any torch optimizer.
            batch_ids: ID of each example in the batch, ``(b,)``, in order; not together with
                ``observe``.
            batch: Only with ``record="batches"``, which this version does not have.

        Raises:
            TracingError: The IDs are missing or wrong; nothing was stepped nor written.
        """
        observed = self._take(batch_ids, batch)
        result, applied = self._log.run(
            closure, observed, epoch=self.epoch, clip_factor=self._clip_factor
        )
        if applied:
            self._recorder.step_ended()
        self._clip_factor = 1.0
        return result

    def observe(self, batch_ids: Any, weights: Any = None, batch: Any = None) -> None:
        """Announce one micro-batch of the next step.

        Args:
            batch_ids: ID of each example, ``(b,)``, in order.
            weights: ``c_i``, each loss's weight in the step's objective, ``(b,)``; default:
                ``1/(k b)`` with k micro-batches for a mean, 1 for a sum.
            batch: Only with ``record="batches"``, which this version does not have.

        Raises:
            TracingError: The IDs or weights are wrong.
        """
        self._observed.append(self._micro_batch(batch_ids, weights, batch, observing=True))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset gradients and drop pending observations."""
        self._observed.clear()
        self._recorder.gradients_dropped()
        self._clip_factor = 1.0
        self.optimizer.zero_grad(set_to_none)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the gradient of all groups together and record the factor.

        Args:
            max_norm: Largest norm.
            norm_type: As for ``torch.nn.utils.clip_grad_norm_``.

        Returns:
            The norm before clipping, a scalar tensor.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
        self._clip_factor *= min(1.0, max_norm / (float(norm) + 1e-6))
        return norm

    def flush(self) -> None:
        """Return when every step so far is on file."""
        self._log.flush()

    def close(self) -> None:
        """End the log; further steps are errors."""
        self._finalizer()

    @property
    def position(self) -> tuple[int, int | None]:
        """(steps taken, epoch)."""
        return self._log.steps, self.epoch

    def _take(self, batch_ids: Any, batch: Any) -> list[MicroBatch]:
        """Return the step's micro-batches with their coefficients."""
        self._log.require_open()
        observed = list(self._observed)
        if observed and batch_ids is not None:
            raise TracingError(
                "step() got batch_ids and micro-batches were observed: use one way, "
                "step(batch_ids=ids) or observe(ids) before step()."
            )
        if not observed:
            observed = [self._micro_batch(batch_ids, None, batch, observing=False)]
        self._log.check_id_type(observed[0][0][0])
        if len({type(ids[0]) for ids, _, _ in observed}) > 1:
            raise TracingError("batch IDs must be all integers or all strings; found both.")
        self._observed.clear()
        k = len(observed)
        return [
            MicroBatch(ids, self._coefficients(ids, weights, k), state)
            for ids, weights, state in observed
        ]

    def _micro_batch(
        self, batch_ids: Any, weights: Any, batch: Any, *, observing: bool
    ) -> tuple[tuple[Any, ...], Any, Any]:
        self._log.require_open()
        if batch is not None:
            raise TracingError('batch= needs record="batches", which this version does not have.')
        ids = plain_ids(batch_ids)
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
            if weights.shape != (len(ids),):
                raise TracingError(
                    f"observe() got weights of shape {tuple(weights.shape)} for {len(ids)} IDs; "
                    "give one weight each."
                )
        return ids, weights, self._recorder.take(observing=observing)

    def _coefficients(self, ids: tuple[Any, ...], weights: Tensor | None, k: int) -> Tensor:
        if weights is not None:
            return weights
        value = 1 / (k * len(ids)) if self._reduction == "mean" else 1.0
        return torch.full((len(ids),), value, dtype=torch.float64)

    # what torch tools read and write on an optimizer: all of it is the wrapped one's

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's parameter groups."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    @property
    def grad_scale(self) -> Any:
        """What a GradScaler hands to optimizers that unscale by themselves."""
        return getattr(self.optimizer, "grad_scale", None)

    @grad_scale.setter
    def grad_scale(self, value: Any) -> None:
        self.optimizer.grad_scale = value  # type: ignore[attr-defined]

    @grad_scale.deleter
    def grad_scale(self) -> None:
        del self.optimizer.grad_scale  # type: ignore[attr-defined]

    @property
    def found_inf(self) -> Any:
        """Likewise: whether the gradient overflowed."""
        return getattr(self.optimizer, "found_inf", None)

    @found_inf.setter
    def found_inf(self, value: Any) -> None:
        self.optimizer.found_inf = value  # type: ignore[attr-defined]

    @found_inf.deleter
    def found_inf(self) -> None:
        del self.optimizer.found_inf  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state into the wrapped optimizer (a copy: torch would share the tensors)."""
        self.optimizer.load_state_dict(copy.deepcopy(state_dict))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters of the model."""
        names = {id(p) for p in self._log.model.parameters()}
        found = param_group["params"]
        found = [found] if isinstance(found, Tensor) else list(found)
        if any(id(p) not in names for p in found):
            raise TracingError(
                "add_param_group got a parameter that the traced model does not have."
            )
        self.optimizer.add_param_group({**param_group, "params": found})

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Register with the wrapped optimizer, which calls it once a step."""
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        """Register with the wrapped optimizer, which calls it once a step."""
        return self.optimizer.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register with the wrapped optimizer."""
        return self.optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register with the wrapped optimizer."""
        return self.optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register with the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register with the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)


class TracingSGD(TracingOptimizer):
    """``TracingOptimizer`` around a ``torch.optim.SGD``, whose steps a replay can split.

    Raises:
        TracingError: The optimizer is another one; ``TracingOptimizer`` wraps any.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, log: str | Path, **options: Any):
        if type(optimizer) is not torch.optim.SGD:
            raise TracingError(
                f"TracingSGD wraps a torch.optim.SGD, found {_qualified(type(optimizer))}; "
                "TracingOptimizer wraps any torch optimizer."
            )
        super().__init__(optimizer, model, log, **options)


def _close(log: StepLogger, recorder: Recorder) -> None:
    recorder.close()
    log.close()


def _qualified(kind: type) -> str:
    module = "torch.optim" if _is_torch(kind) else kind.__module__
    return f"{module}.{kind.__qualname__}"


def _rule(kind: type) -> str:
    return kind.__name__ if _is_torch(kind) else _qualified(kind)


def _is_torch(kind: type) -> bool:
    return getattr(torch.optim, kind.__name__, None) is kind


def _check_arguments(
    optimizer: Any,
    model: Any,
    task: Any,
    reduction: str,
    snapshot_every: int,
    record: str,
    resume: bool,
) -> None:
    if isinstance(optimizer, TracingOptimizer) or not isinstance(optimizer, Optimizer):
        raise TracingError(f"expected a torch optimizer to wrap, found {type(optimizer).__name__}.")
    if not isinstance(model, nn.Module):
        raise TracingError(f"model must be an nn.Module, found {type(model).__name__}.")
    if task is not None and not (isinstance(task, str) and ":" in task):
        raise TracingError(f'task must be "package.module:name" or "file.py:name", found {task!r}.')
    if reduction not in ("mean", "sum"):
        raise TracingError(f'reduction must be "mean" or "sum", found {reduction!r}.')
    later = {
        "snapshot_every": snapshot_every != 1,
        "record": record != "ids",
        "resume": bool(resume),
    }
    for name, asked in later.items():
        if asked:
            default = {"snapshot_every": 1, "record": '"ids"', "resume": False}[name]
            raise TracingError(f"{name} other than {default} is not available in this version.")


def _check_parameters(optimizer: Optimizer, names: dict[int, str]) -> None:
    for k, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise TracingError(
                    f"group {k} of the optimizer holds a parameter of shape "
                    f"{tuple(parameter.shape)} that is not in the model; pass the model whose "
                    "parameters it moves."
                )
