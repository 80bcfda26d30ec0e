"""Binds a task's model to a log: private copies of it that hold logged states in given dtypes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from replay.evaluate.copies import models
from replay.evaluate.eval_mode import EvalMode
from replay.evaluate.state import State
from replay.gradients.engine import Engine
from replay.task import Task
from tracer.errors import TaskError
from tracer.log.read.run_log import RunLog
from tracer.records import RandomState

Layout = Mapping[str, tuple[torch.Size, torch.dtype]]


class BoundModel:
    """A private model of the task that holds one logged state at a time.

    Attributes:
        module: The copy.
        parameters: By the log's names, in the log's dtypes or all in ``dtype``.
        engine: Computes per-example gradients of them.
        audit: Passes between proofs of what it computes.
        eval_mode: Puts the copy into eval mode.
        coarsest: The dtype to which the training loss casts (autocast), once one was computed.
        apart: By what is computed, why a trial found that each state takes a pass of its own, or
            None if some take one together (``slots``).
    """

    def __init__(
        self,
        built: nn.Module,
        log: RunLog,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        audit: int = 100,
    ) -> None:
        self.engine, self.audit = Engine(audit), audit
        self.apart: dict[str, str | None] = {}
        self.module = built.to(device)
        self.eval_mode = EvalMode(self.module)
        self.dtype = dtype
        self.coarsest: torch.dtype | None = None
        self.parameters: dict[str, Tensor] = dict(self.module.named_parameters())
        self._buffers = buffers = dict(self.module.named_buffers())
        self._tables = [
            (m._buffers, key, b) for m in built.modules() for key, b in m._buffers.items()
        ]
        _check_layout("parameter", self.parameters, log.parameter_layout, log)
        _check_layout("buffer", buffers, log.buffer_layout, log)
        for parameter in self.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(parameter.is_floating_point())
        layout = {**log.parameter_layout, **log.buffer_layout}
        for name, tensor in {**self.parameters, **buffers}.items():
            logged = layout[name][1]
            wanted = dtype if dtype is not None and logged.is_floating_point else logged
            tensor.data = tensor.data.to(wanted)
        for buffer in buffers.values():  # an expanded one cannot be written to
            buffer.data = buffer.data.contiguous()
        held = [*self.parameters.values(), *buffers.values()]
        self.engine.overwritten = frozenset(t.untyped_storage().data_ptr() for t in held) - {0}

    def moving(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the parameters that have gradients, all or some."""
        return {
            n: p
            for n, p in self.parameters.items()
            if p.requires_grad and (names is None or n in names)
        }

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Copy a state in; dtypes are converted, devices too."""
        for name, tensor in self.parameters.items():
            tensor.copy_(parameters[name])
        for table, key, buffer in self._tables:  # a forward may have put another one there
            table[key] = buffer
        for name, tensor in self._buffers.items():
            tensor.copy_(buffers[name])

    def is_close(self, found: Tensor, expected: Tensor) -> bool:
        """Return whether values at one state are the same but for rounding."""
        share = 1e-9 if self.dtype == torch.float64 else 1e-3
        return bool(((found - expected).abs() <= share * (1 + expected.abs())).all())

    def load_for_eval(self, state: State) -> None:
        """Copy a state in and be in eval mode: what is merged or kept there is made of it."""
        self.eval_mode.leave()
        self.load(state.parameters, state.buffers)
        self.eval_mode.enter()


@dataclass(frozen=True)
class Models:
    """The copies that a replay evaluates.

    Attributes:
        train: Holds ``w_t`` in train mode while step t is replayed.
        test: Holds any point, eval mode, the run's dtype: gradients.
        value: Likewise, for values of ``φ``: float64 unless ``values="model"``.
        device: Where all of them are.
    """

    train: BoundModel
    test: BoundModel
    value: BoundModel
    device: torch.device

    def strangers(self, bound: BoundModel) -> dict[int, str]:
        """Return names of the parameters of all copies but one, by ``id``."""
        others = (one for one in (self.train, self.test, self.value) if one is not bound)
        return {id(p): name for one in others for name, p in one.parameters.items()}


def bind(
    task: Task,
    log: RunLog,
    device: torch.device,
    dtypes: tuple[torch.dtype | None, torch.dtype | None, torch.dtype | None],
    *,
    audit: int,
) -> Models:
    """Return three models of a task, each in a dtype (None is the run's own)."""
    train, test, value = (
        BoundModel(built, log, device=device, dtype=dtype, audit=audit)
        for built, dtype in zip(models(task, len(dtypes)), dtypes, strict=True)
    )
    for bound in (test, value):  # derivatives of the measured value, whatever training does to its
        for parameter in bound.parameters.values():
            parameter._backward_hooks = None
    return Models(train, test, value, device)


def without_graph(run: Callable[[], Tensor]) -> Tensor:
    """Return values of losses, which may differentiate inside (an input's gradient, say)."""
    try:
        with torch.no_grad():
            return run().detach()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return run().detach()


def _check_layout(kind: str, found: Mapping[str, Tensor], logged: Layout, log: RunLog) -> None:
    for name, tensor in found.items():
        if is_lazy(tensor):
            raise TaskError(
                f"{kind} {name!r} of task.model() has no shape yet; run a batch through the model "
                "before it is returned."
            )
        if kind == "parameter" and tensor.is_complex():
            raise TaskError(
                f"parameter {name!r} of task.model() is {tensor.dtype}, and gradients are taken of "
                "real parameters; hold real and imaginary part as one real parameter (its forward "
                "takes torch.view_as_complex) and trace that."
            )
    for name, (shape, _) in logged.items():
        if name not in found:
            raise TaskError(
                f"task.model() has no {kind} {name!r}, which {log.path} holds with shape "
                f"{tuple(shape)}; build the model as the traced run did."
            )
        if found[name].shape != shape:
            raise TaskError(
                f"{kind} {name!r} has shape {tuple(found[name].shape)} in task.model() and "
                f"{tuple(shape)} in {log.path}; build the model as the traced run did."
            )
    for name in found:
        if name not in logged:
            raise TaskError(
                f"task.model() has the {kind} {name!r}, which {log.path} does not hold; "
                "build the model as the traced run did."
            )


def set_random_state(state: RandomState | None) -> None:
    """Put torch's generators where a logged forward pass found them."""
    if state is None:
        return
    torch.set_rng_state(state.cpu)
    for device, cuda in state.cuda.items():
        torch.cuda.set_rng_state(cuda, device)
