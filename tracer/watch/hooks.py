"""Hooks on the model that tell a watch when a training forward begins, and mark what is used.

A forward counts if the very object given as ``model`` runs it in train mode with gradients
enabled. It *belongs* to the step if a gradient flows back through its output; so a forward whose
batch was skipped, or a second one in the same micro-batch, does no harm.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracer.unwrapping import unwrapped
from tracer.watch.captures import Capture, Captures


class Watch(Protocol):
    """Whom the hooks tell."""

    captures: Captures

    def forward_begins(self) -> None:
        """Look at model and generators before a training forward."""
        ...

    def forward_ends(self) -> None:
        """Look at them after it."""
        ...

    def before_load(self) -> None:
        """Look at the model before other parameters are loaded."""
        ...


class Hooks:
    """The hooks on one model.

    Args:
        watch: Told of forwards.
        model: The object whose forwards count.
    """

    def __init__(self, watch: Watch, model: nn.Module) -> None:
        self._model, self._watch, self._hook = model, weakref.ref(watch), _Hook(watch, model)
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on."""
        marker, inner = _Marker(self._hook), unwrapped(self._model)
        self._handles = [
            self._model.register_forward_pre_hook(self._hook),
            self._model.register_forward_hook(marker),
            inner.register_load_state_dict_pre_hook(_LoadHook(self._watch, inner)),  # type: ignore[no-untyped-call]
        ]
        compiled = self._model._compiled_call_impl
        if compiled is not None:  # model.compile() compiles its hooks away
            self._model._compiled_call_impl = _Compiled(compiled, self._hook, marker)

    @property
    def are_on(self) -> bool:
        """Whether they are on the model."""
        return bool(self._handles)

    def draws_otherwise(self) -> bool:
        """Return whether what is compiled in the model draws other numbers than eager does."""
        compiled = [self._model, *(m._compiled_call_impl for m in self._model.modules())]
        compiled += [m for m in self._model.modules() if m is not self._model]
        return any(map(_draws_otherwise, compiled))

    def detach(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()
        compiled = self._model._compiled_call_impl
        if isinstance(compiled, _Compiled):
            self._model._compiled_call_impl = compiled.inner

    def passed_by(self) -> bool:
        """Return whether a training forward ran compiled where no hook can look, since asked."""
        found, self._hook.compiled = self._hook.compiled, False
        made = self._model._compiled_call_impl
        return found or (made is not None and not isinstance(made, _Compiled))


class _Hook:
    """Forward pre-hook; copies and pickles of the model carry one that does nothing.

    Attributes:
        compiled: Whether a training forward ran inside a compiled function.
    """

    def __init__(self, watch: Watch | None, model: nn.Module | None) -> None:
        self.compiled = False
        self.watch = None if watch is None else weakref.ref(watch)
        self.model = (lambda: None) if model is None else weakref.ref(model)

    def active(self, module: nn.Module) -> Watch | None:
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


class _LoadHook:
    """Hook of ``load_state_dict``; like the others, it does nothing on copies of the model."""

    def __init__(self, watch: Callable[[], Watch | None], module: nn.Module | None) -> None:
        self._watch = watch
        self._module = (lambda: None) if module is None else weakref.ref(module)

    def __call__(self, module: nn.Module, *_: Any) -> None:
        watch = self._watch() if self._module() is module else None
        if watch is not None:
            watch.before_load()

    def __deepcopy__(self, memo: dict[int, Any]) -> _LoadHook:
        return _LoadHook(_nobody, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _LoadHook, (_nobody, None)


def _nobody() -> None:
    return None


class _Marker:
    """Forward hook that marks a capture as used when a gradient reaches its output."""

    def __init__(self, hook: _Hook) -> None:
        self._hook = hook

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        watch = self._hook.active(module)
        if watch is None:
            return
        watch.forward_ends()
        capture = watch.captures.last
        if capture is None or capture.used:
            return
        mark(watch.captures, capture, output)

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


def mark(captures: Captures, capture: Capture, output: Any) -> None:
    """Have a capture marked as used when a gradient reaches what its forward led to.

    Args:
        captures: Whose it is.
        capture: Of a forward.
        output: A tensor, or several.
    """

    def use(_: Tensor) -> None:
        captures.use(capture)

    for tensor in _tensors(output):
        if tensor.requires_grad:
            capture.graph = weakref.ref(use)
            node = tensor.grad_fn
            if node is None:
                tensor.register_hook(use)  # type: ignore[no-untyped-call]
            else:  # half the time of the tensor's own
                node.register_prehook(use)


def _draws_otherwise(compiled: Any) -> bool:
    if isinstance(compiled, _Compiled):
        compiled = compiled.inner
    ask = getattr(compiled, "get_compiler_config", None)
    config = None if ask is None else ask()  # None of other backends than inductor
    usual = config is not None and torch._inductor.config.fallback_random
    return config is not None and not (usual or config["fallback_random"])


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
