"""Binds a task's model to a log: private copies of it that hold logged states in given dtypes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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
        self.engine = Engine(audit)
        self.module = built.to(device)
        self.dtype = dtype
        self.parameters: dict[str, Tensor] = dict(self.module.named_parameters())
        self._buffers = dict(self.module.named_buffers())
        _check_layout("parameter", self.parameters, log.parameter_layout, log)
        _check_layout("buffer", self._buffers, log.buffer_layout, log)
        for parameter in self.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(parameter.is_floating_point())
        layout = {**log.parameter_layout, **log.buffer_layout}
        for name, tensor in {**self.parameters, **self._buffers}.items():
            logged = layout[name][1]
            wanted = dtype if dtype is not None and logged.is_floating_point else logged
            tensor.data = tensor.data.to(wanted)
        for buffer in self._buffers.values():
            if any(
                n > 1 and stride == 0
                for n, stride in zip(buffer.shape, buffer.stride(), strict=True)
            ):
                buffer.data = buffer.data.clone()  # torch writes to no expanded tensor
        self._places = [
            (m._buffers, k, b) for m in self.module.modules() for k, b in m._buffers.items()
        ]
        held = [*self.parameters.values(), *self._buffers.values()]
        self.engine.overwritten = frozenset(t.untyped_storage().data_ptr() for t in held) - {0}

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Copy a state in; dtypes are converted, devices too."""
        for name, tensor in self.parameters.items():
            tensor.copy_(parameters[name])
        for table, key, buffer in self._places:
            table[key] = buffer  # a forward may have put another one there
        for name, tensor in self._buffers.items():
            tensor.copy_(buffers[name])


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


def bind(
    task: Task,
    log: RunLog,
    device: torch.device,
    dtypes: tuple[torch.dtype | None, torch.dtype | None, torch.dtype | None],
    *,
    audit: int,
) -> Models:
    """Return three copies of a task's model, each in a dtype (None is the run's own)."""
    built = build(task)
    train, test, value = (
        BoundModel(copied(built, task), log, device=device, dtype=dtype, audit=audit)
        for dtype in dtypes
    )
    return Models(train, test, value, device)


def build(task: Task) -> nn.Module:
    """Call ``task.model()`` and make sure that it is a module."""
    built = task.model()
    if not isinstance(built, nn.Module):
        raise TaskError(f"task.model() must return an nn.Module, found {type(built).__name__}.")
    return built


def copied(built: nn.Module, task: Task) -> nn.Module:
    """Return a copy of a built model; it is built again where it cannot be copied.

    Weights that hooks make (``nn.utils.weight_norm``, ``prune``) cannot, nor need they be: states
    are loaded.
    """
    try:
        return copy.deepcopy(built)
    except RuntimeError:
        return build(task)


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
