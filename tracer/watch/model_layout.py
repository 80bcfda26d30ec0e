"""What a log's rows hold of the model: it stays what it was when the wrapper was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import is_
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tracer.codec.dense import kind
from tracer.errors import TracingError


class ModelLayout:
    """Names, shapes and dtypes of a model's parameters and buffers.

    Args:
        model: The module that owns them.

    Raises:
        TracingError: One is sparse, or has no shape yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._away: tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]] | None = None
        self._names = [name for name, _ in model.named_buffers()]
        self._parameters = dict(model.named_parameters())
        labelled = _labelled(self._parameters, "parameter")
        labelled += _labelled(dict(model.named_buffers()), "buffer")
        self._was = {key: _shown(tensor) for key, tensor in labelled}
        for key, tensor in labelled:
            shown = self._was[key]
            if shown != "lazy" and kind(tensor) != "dense":
                raise TracingError(f"the model's {key} is {shown}; a log stores dense ones.")
            if shown == "lazy":
                raise TracingError(
                    f"the model's {key} has no shape yet; run a batch through first."
                )
        self._look()

    @property
    def has_buffers(self) -> bool:
        """Whether there are any."""
        return bool(self._names)

    def require(self) -> None:
        """Raise TracingError if a parameter or a buffer is not what it was at construction."""
        if self._was_moved():
            self._compare()
            self._look()
        elif _kinds(self._tensors) != self._kinds:
            self._compare()

    def buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers; those under two names are there once.

        Raises:
            TracingError: As ``require`` does.
        """
        self.require()
        return {name: _copy(buffer) for name, buffer in self._buffers.items()}

    def forward_buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers as a forward finds them, whatever the layout is then.

        ``torch.func.functional_call`` puts other tensors in their places while a forward runs. What
        lies in its place again at the next look was away for that, and the copy is put right; what
        does not was assigned anew.
        """
        self.put_right()
        own, found = self._buffers, self._buffers
        if self._was_moved():
            found = {**own, **dict(self._model.named_buffers(remove_duplicate=False))}
        copies = {name: _copy(found[name]) for name in self._names}
        away = {n: (own[n], _copy(own[n])) for n in self._names if found[n] is not own[n]}
        self._away = (copies, away) if away else None
        return copies

    def put_right(self) -> None:
        """Look whether buffers that were away are in their places again."""
        if self._away is not None:
            (copies, away), self._away = self._away, None
            now = dict(self._model.named_buffers(remove_duplicate=False))
            copies.update({n: copy for n, (own, copy) in away.items() if now.get(n) is own})

    def require_alike(self, copies: Mapping[str, Tensor]) -> None:
        """Raise TracingError unless buffers that a forward found are those of the layout."""
        self.put_right()
        self.require()
        for key, tensor in _labelled(copies, "buffer"):
            if _shown(tensor) != self._was[key]:
                self._refuse(key, _shown(tensor))

    def _was_moved(self) -> bool:
        """Return whether other tensors or modules lie in the places than were seen last."""
        held = _values(self._tables)
        return len(held) != len(self._held) or not all(map(is_, held, self._held))

    def _look(self) -> None:
        """Remember what lies where, so that a change is seen without asking for every name."""
        modules = list(self._model.modules())
        self._tables = [t for m in modules for t in (m._parameters, m._buffers, m._modules)]
        self._held = _values(self._tables)
        self._tensors = [value for value in self._held if isinstance(value, Tensor)]
        self._kinds = _kinds(self._tensors)
        found = dict(self._model.named_buffers(remove_duplicate=False))
        self._buffers = {name: found[name] for name in self._names}

    def _compare(self) -> None:
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        buffers = dict(self._model.named_buffers(remove_duplicate=False))
        for name, parameter in self._parameters.items():
            if parameters.get(name, parameter) is not parameter:
                self._refuse(f"parameter {name!r}", f"another tensor, {_shown(parameters[name])},")
        now = dict([*_labelled(parameters, "parameter"), *_labelled(buffers, "buffer")])
        for key, was in self._was.items():
            if key not in now or _shown(now[key]) != was:
                self._refuse(key, _shown(now[key]) if key in now else "missing")
        known = {id(now[key]) for key in self._was}
        for key, tensor in now.items():
            if id(tensor) not in known:
                self._refuse(key, _shown(tensor))

    def _refuse(self, key: str, now: str) -> NoReturn:
        raise TracingError(
            f"the model's {key} is {now} and was {self._was.get(key, 'missing')} when the wrapper "
            "was made: a log's rows have one layout. Make, register or convert it before the "
            "wrapper is made, or begin a new log with a new wrapper."
        )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _labelled(tensors: Mapping[str, Tensor], kind: str) -> list[tuple[str, Tensor]]:
    return [(f"{kind} {name!r}", tensor) for name, tensor in tensors.items()]


def _values(tables: Iterable[Mapping[str, Any]]) -> list[Any]:
    return [*chain.from_iterable([table.values() for table in tables])]


def _kinds(tensors: Iterable[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _shown(tensor: Tensor) -> str:
    if is_lazy(tensor):
        return "lazy"
    found = kind(tensor)
    shape = tuple(tensor.shape) if found != "nested" else "of many shapes"
    dense = "" if found == "dense" else f"{found} "
    return f"{dense}{str(tensor.dtype).removeprefix('torch.')} {shape}"
