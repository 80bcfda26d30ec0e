"""Takes a wrapped optimizer's steps and turns each into a record.

A step is written when the parameters that it led to are final: at the beginning of the next
step, at ``flush`` or at ``close``. So whatever touches parameters between two steps is in the
log, and each step costs one copy of the parameters.
"""

from __future__ import annotations

import math
import os
import platform
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracer.errors import TracingError
from tracer.packing import Row, pack
from tracer.recording import Recorder
from tracer.records import MicroBatch, ParameterGroup, Step
from tracer.writer import LogWriter


class StepLogger:
    """Steps one optimizer and logs it.

    Attributes:
        path: The log.
        model: The module that owns the parameters.
        steps: How many steps were taken.
    """

    def __init__(
        self,
        path: Path,
        optimizer: Optimizer,
        model: nn.Module,
        recorder: Recorder,
        attributes: Mapping[str, Any],
    ) -> None:
        self.path, self.model, self.steps = path, model, 0
        self._optimizer, self._recorder = optimizer, recorder
        self._attributes = dict(attributes)
        self._writer: LogWriter | None = None
        self._pending: tuple[Step, Row] | None = None
        self._closed = False
        self._owner = os.getpid()

    def require_open(self) -> None:
        """Raise TracingError after ``close``."""
        if self._closed:
            raise TracingError(
                f"the log {self.path} is closed; keep training steps inside the with block."
            )

    def run(
        self,
        closure: Callable[[], Any] | None,
        batches: Callable[[], list[MicroBatch]],
        *,
        epoch: int | None,
        clip_factor: float,
    ) -> tuple[Any, bool]:
        """Take one step.

        Returns:
            What the optimizer returned, and whether it stepped (AMP may skip).
        """
        before = pack(dict(self.model.named_parameters()))
        groups = self._groups()
        measured: list[tuple[float, frozenset[str]]] = []

        def measure() -> None:
            """Look at what is about to be applied; the last step has led to ``before``."""
            if not measured:
                self._settle(before, self._buffers())
            measured.append(self._gradients())

        def evaluate() -> Any:
            loss = None if closure is None else closure()
            measure()
            return loss

        if closure is None:
            measure()
            result = self._optimizer.step()
        else:
            result = self._optimizer.step(evaluate)
        buffers = self._buffers()
        if self._skipped():
            return result, False
        norm, without_gradient = measured[-1]
        step = Step(
            index=self.steps,
            epoch=epoch,
            micro_batches=tuple(batches()),
            groups=groups,
            gradient_norm=norm,
            clip_factor=clip_factor,
            without_gradient=without_gradient,
            frozen=frozenset(
                name for name, p in self.model.named_parameters() if not p.requires_grad
            ),
        )
        self._pending = (step, buffers)
        self.steps += 1
        return result, True

    def flush(self) -> None:
        """Write the last step with the parameters as they are now."""
        if self._writer is not None:
            self._settle(*self._current())
            self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file; a forked copy of the process leaves it alone."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._owner:
            return
        self._settle(*self._current())
        if self._writer is not None:
            if self.steps:
                self._writer.state(self.steps, self._state())
            self._writer.close()

    def _buffers(self) -> Row:
        """Return ``β_t``: the buffers before the step's first training forward, if one was seen."""
        seen = self._recorder.buffers
        return pack(self._recorder.current_buffers() if seen is None else seen)

    def _current(self) -> tuple[Row, Row]:
        return pack(dict(self.model.named_parameters())), pack(self._recorder.current_buffers())

    def _settle(self, parameters: Row, buffers: Row) -> None:
        """Write the pending step, which led to these; begin the log if there is none."""
        if self._writer is None:
            self._writer = self._create()
            self._writer.begin(parameters)
            if any(self._optimizer.state.values()):
                self._writer.state(0, self._state())
        elif self._pending is not None:
            step, before = self._pending
            self._writer.append(step, parameters, before, buffers)
            self._pending = None
        else:
            self._writer.amend(parameters, buffers)

    def _create(self) -> LogWriter:
        parameters = {n: p.detach() for n, p in self.model.named_parameters()}
        buffers = {n: b.detach() for n, b in self.model.named_buffers()}
        random = self._recorder.random_state()
        return LogWriter(
            self.path,
            parameters,
            buffers,
            hyperparameters=self._hyperparameter_names(),
            random_bytes=len(random.cpu) + sum(len(s) for s in random.cuda.values()),
            attributes={
                **self._attributes,
                **_environment(),
                "device": str(next((p.device for p in parameters.values()), "cpu")),
                "cuda_devices": " ".join(map(str, self._recorder.devices)),
                "model": type(self.model).__name__,
            },
        )

    def _hyperparameter_names(self) -> list[str]:
        names: dict[str, None] = {}
        for group in self._optimizer.param_groups:
            names.update(dict.fromkeys(self._numbers(group)))
        return list(names)

    def _numbers(self, group: Mapping[str, Any]) -> dict[str, float]:
        """Return a group's numeric hyperparameters; tuples are spread, None is NaN."""
        found: dict[str, float] = {}
        for key in ("lr", *self._optimizer.defaults):
            value = group.get(key)
            if isinstance(value, (tuple, list)):
                found.update({f"{key}.{k}": float(v) for k, v in enumerate(value)})
            elif isinstance(value, (bool, int, float)) or (
                isinstance(value, Tensor) and value.numel() == 1
            ):
                found[key] = float(value)
            elif value is None:
                found[key] = math.nan
        return found

    def _groups(self) -> tuple[ParameterGroup, ...]:
        names = {id(p): name for name, p in self.model.named_parameters()}
        return tuple(
            ParameterGroup(tuple(names[id(p)] for p in group["params"]), self._numbers(group))
            for group in self._optimizer.param_groups
        )

    def _gradients(self) -> tuple[float, frozenset[str]]:
        """Return the norm of the gradient that is about to be applied, and who has none."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        gradients = [p.grad.detach() for p in parameters if p.grad is not None]
        without = frozenset(names[id(p)] for p in parameters if p.grad is None)
        dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        norms = torch._foreach_norm(dense) if dense else ()
        squares = [float(norm) ** 2 for norm in norms]
        scale = getattr(self._optimizer, "grad_scale", None)
        return math.sqrt(math.fsum(squares)) / (1.0 if scale is None else float(scale)), without

    def _skipped(self) -> bool:
        found_inf = getattr(self._optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)

    def _state(self) -> dict[int, Mapping[str, Any]]:
        index = {id(p): k for k, p in enumerate(self.model.parameters())}
        return {index[id(p)]: entries for p, entries in self._optimizer.state.items()}


def _environment() -> dict[str, Any]:
    return {
        "run_uuid": str(uuid.uuid4()),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": bool(torch.backends.mkldnn.enabled),
    }
