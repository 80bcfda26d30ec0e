r"""BatchNorm's running statistics as functions of the parameters.

    μ' = (1 − f) μ + f mean(x),      v' = (1 − f) v + f n / (n − 1) var(x)

In train mode torch writes them without a graph, in eval mode it reads them without one. While
``Statistics`` is in force, both have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracer.errors import GradientError

_MEAN, _VARIANCE = "running_mean", "running_var"


class Statistics:
    """The running statistics of a model during one forward pass.

    Args:
        module: The model.

    Attributes:
        before: By the buffers' names, as they were; leaves of the graph.
        after: As the pass left them; they have a graph.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._norms = {
            one: f"{name}." if name else ""
            for name, one in module.named_modules()
            if isinstance(one, _BatchNorm) and one.running_mean is not None
        }
        self._buffers = {n: b.detach().clone() for n, b in module.named_buffers()}
        names = [f"{prefix}{kind}" for prefix in self._norms.values() for kind in _KINDS]
        self.before = {n: self._buffers[n].clone().requires_grad_() for n in names}
        self.after: dict[str, Tensor] = dict(self.before)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow a forward pass."""
        handles: list[Any] = []
        for norm in self._norms:
            handles.append(norm.register_forward_pre_hook(self._writes, with_kwargs=True))
            handles.append(norm.register_forward_hook(self._reads, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _writes(self, norm: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not norm.training:
            return
        x = (given[0] if given else named["input"]).to(norm.running_mean.dtype)
        share = norm.momentum
        if share is None:
            share = 1 / (int(norm.num_batches_tracked) + 1)
        others = [d for d in range(x.dim()) if d != 1]
        found = {_MEAN: x.mean(others), _VARIANCE: x.var(others)}
        for kind, value in found.items():
            name = self._norms[norm] + kind
            self.after[name] = (1 - share) * self.after[name] + share * value

    def _reads(
        self, norm: Any, given: tuple[Any, ...], named: dict[str, Any], found: Tensor
    ) -> Tensor | None:
        if norm.training:
            return None
        x = given[0] if given else named["input"]
        mean, variance = (
            self.after[self._norms[norm] + kind].view(-1, *[1] * (x.dim() - 2)) for kind in _KINDS
        )
        y: Tensor = (x - mean) / (variance + norm.eps).sqrt()
        if norm.weight is not None:
            y = y * norm.weight.view(mean.shape) + norm.bias.view(mean.shape)
        return y.to(found.dtype)

    def check(self, where: str) -> None:
        """Compare with what the pass wrote.

        Raises:
            GradientError: It wrote something else, or to another buffer; names it.
        """
        for name, buffer in self._module.named_buffers():
            old = self._buffers.get(name)
            if not buffer.is_floating_point() or old is None or torch.equal(buffer, old):
                continue
            if name not in self.after or not agrees(self.after[name], buffer):
                raise _otherwise(name, where)


_KINDS = (_MEAN, _VARIANCE)


def elsewhere(name: str, where: str) -> GradientError:
    """Return the error of running statistics that forward passes of the step did not leave so."""
    return GradientError(
        f"{where}: the run's buffer {name!r} after the step is not what the step's forward passes "
        "leave, and unrolled differentiates these alone.\n"
        "  1. If the loop runs the model in train mode between steps (an evaluation without "
        "model.eval()), call model.eval() before, and train again;\n"
        "  2. if the replay has another dtype than the run (dtype=, --dtype) and the model draws "
        "noise, leave that out;\n"
        "  3. or ask for the other methods, which take buffers as they were."
    )


def _otherwise(name: str, where: str) -> GradientError:
    """Return the error of a buffer of which nobody knows how it follows from the parameters."""
    return GradientError(
        f"{where}: the buffer {name!r} changes with the parameters in another way than BatchNorm's "
        "running statistics, and unrolled differentiates no other.\n"
        "  1. Build the model without it (track_running_stats=False, no moving averages inside);\n"
        "  2. or ask for the other methods, which take buffers as they were."
    )


def agrees(found: Tensor, expected: Tensor) -> bool:
    """Return whether statistics are those expected but for rounding."""
    share = torch.finfo(expected.dtype).eps ** 0.6
    found = found.detach().to(expected)
    return bool(((found - expected).abs() <= share * (1 + expected.abs())).all())
