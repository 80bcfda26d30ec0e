"""Hooks on the model that catch random state and buffers when a training forward begins.

A forward counts if the very object given as ``model`` runs it in train mode with gradients
enabled. It *belongs* to the step if a gradient flows back through its output; so a forward whose
batch was skipped, or a second one in the same micro-batch, does no harm.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracer.errors import TracingError, warn
from tracer.records import RandomState
from tracer.watch.captures import Captures
from tracer.watch.forward_warnings import BY_METHOD, COMPILED
from tracer.watch.model_layout import ModelLayout
from tracer.watch.skipped_steps import SkippedSteps
from tracer.watch.state_capture import random_state


class ForwardWatch:
    """Watches the forward passes of one model.

    Args:
        model: The object whose forwards count; may be compiled or wrapped.
        inner: The module that owns parameters and buffers.
        skips: Knows which steps a GradScaler skipped.

    Attributes:
        captures: Forwards since the last micro-batch.
        step: How many steps were taken or skipped.
        clip_factor: What the gradient was multiplied with.
    """

    def __init__(self, model: nn.Module, inner: nn.Module, skips: SkippedSteps) -> None:
        self.devices = sorted({p.device.index or 0 for p in inner.parameters() if p.is_cuda})
        self._model, self._layout, self._skips = model, ModelLayout(inner), skips
        self._buffers: dict[str, Tensor] | TracingError | None = None
        self.captures = Captures(inner.parameters())
        self._observe_first = False
        self.step, self.clip_factor = 0, 1.0
        self._handles: list[RemovableHandle] = []
        self._hook = _Hook(self, model)
        self._complained = False

    def attach(self) -> None:
        """Put the hooks on."""
        marker = _Marker(self._hook)
        self._handles = [
            self._model.register_forward_pre_hook(self._hook),
            self._model.register_forward_hook(marker),
        ]
        compiled = self._model._compiled_call_impl
        if compiled is not None:  # model.compile() compiles its hooks away
            self._model._compiled_call_impl = _Compiled(compiled, self._hook, marker)

    def require_seen(self) -> None:
        """Warn once if the model ran where no hook can look: compiled, or by another method."""
        if self._buffers is not None or self._complained:
            return
        made = self._model._compiled_call_impl
        late = made is not None and not isinstance(made, _Compiled)
        compiled = self._hook.compiled or late
        if compiled or (self._layout.has_buffers and self._model.training):
            self._complained = True
            warn(COMPILED if compiled else BY_METHOD)

    @property
    def buffers(self) -> dict[str, Tensor] | None:
        """Copies of the buffers before the step's first training forward, if one was seen.

        Raises:
            TracingError: The model had changed; said here, since a forward alone is no step.
        """
        if isinstance(self._buffers, TracingError):
            raise self._buffers
        return self._buffers

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        compiled = self._model._compiled_call_impl
        if isinstance(compiled, _Compiled):
            self._model._compiled_call_impl = compiled.inner

    def forward_begins(self) -> None:
        """Catch the state of a training forward."""
        self.begin_step()
        self.clip_factor = 1.0  # of gradients that were dropped; else the norm tells
        if self._buffers is None:
            try:
                self._buffers = self.current_buffers()
            except TracingError as error:
                self._buffers = error
        self.captures.forget_dropped()
        if not self._observe_first:
            self.captures.add(random_state(self.devices))

    def take(self, *, observing: bool) -> RandomState | None:
        """Return the state of the micro-batch that ends (or, observed first, begins) here."""
        if observing:
            self.captures.forget_dropped()
            self.captures.forget_over()
        if observing and not self.captures:
            self._observe_first = True
            return random_state(self.devices)
        return self.captures.take()

    def gradients_dropped(self) -> None:
        """Forget forwards whose gradients ``zero_grad`` threw away."""
        self.captures.forget_used()
        self._observe_first, self.clip_factor = False, 1.0

    def clipped(self, factor: float) -> None:
        """Note that the gradient was multiplied."""
        self.begin_step()
        self.clip_factor *= factor

    def begin_step(self) -> None:
        """Begin anew if a GradScaler skipped the last step."""
        if self._skips.take():
            self.step_ended()

    def step_ended(self) -> None:
        """Begin anew after a step."""
        self.captures.clear()
        self._observe_first, self._buffers = False, None
        self.step, self.clip_factor = self.step + 1, 1.0
        self._hook.compiled = False

    def current_buffers(self) -> dict[str, Tensor]:
        """Return copies of the model's buffers; raises TracingError if the model changed."""
        return self._layout.buffers()


class _Hook:
    """Forward pre-hook; copies and pickles of the model carry one that does nothing.

    Attributes:
        compiled: Whether a training forward ran inside a compiled function.
    """

    def __init__(self, watch: ForwardWatch | None, model: nn.Module | None) -> None:
        self.compiled = False
        self.watch = None if watch is None else weakref.ref(watch)
        self.model = (lambda: None) if model is None else weakref.ref(model)

    def active(self, module: nn.Module) -> ForwardWatch | None:
        """Return the watch if this forward counts."""
        if self.watch is None or self.model() is not module:
            return None
        looks = torch.compiler.is_compiling() or torch._C._get_tracing_state()
        counts = module.training and torch.is_grad_enabled() and not looks
        return self.watch() if counts else None

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        if torch.compiler.is_compiling():
            if module.training and torch.is_grad_enabled():
                self.compiled = True  # compiled, too: it is set whenever the function runs
            return
        watch = self.active(module)
        if watch is not None:
            watch.forward_begins()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, None)


class _Marker:
    """Forward hook that marks a capture as used when a gradient reaches its output."""

    def __init__(self, hook: _Hook) -> None:
        self._hook = hook

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        watch = self._hook.active(module)
        capture = watch.captures.last if watch is not None else None
        if watch is None or capture is None or capture.used:
            return
        captures = watch.captures

        def mark(_: Tensor) -> None:
            captures.use(capture)

        for tensor in _tensors(output):
            if tensor.requires_grad:
                capture.graph = weakref.ref(mark)
                node = tensor.grad_fn
                if node is None:
                    tensor.register_hook(mark)  # type: ignore[no-untyped-call]
                else:  # half the time of the tensor's own
                    node.register_prehook(mark)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Marker:
        return _Marker(_Hook(None, None))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Marker, (_Hook(None, None),)


class _Compiled:
    """What ``model.compile()`` made, between the hooks."""

    def __init__(self, inner: Callable[..., Any], hook: _Hook, marker: _Marker) -> None:
        self.inner, self._hook, self._marker = inner, hook, marker

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        model = self._hook.model()
        assert model is not None  # it holds this object
        self._hook(model, arguments)
        output = self.inner(*arguments, **named)
        self._marker(model, arguments, output)
        return output


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dict__"):
        for value in vars(output).values():
            if isinstance(value, (Tensor, list, tuple)):
                yield from _tensors(value)
