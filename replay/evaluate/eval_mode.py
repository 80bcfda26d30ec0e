"""Eval mode of models that do more there than set a flag: that merge or keep weights.

``eval()`` of a LoRA layer adds its update to the weight; other layers keep what they make of their
weights. Then gradients are not those of what was loaded, or values are those of an earlier state.
So each state is loaded in train mode, before ``eval()``; a model whose ``eval()`` changes tensors
gets the flags of its modules only, where that gives the same values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN_SETATTR = (nn.Module.__setattr__, nn.RNNBase.__setattr__)  # no flag is special to them
_TABLES = ("_parameters", "_buffers", "_modules")


class EvalMode:
    """Puts one model into eval mode.

    Args:
        module: The model.

    Attributes:
        flags_only: Leave out what ``eval()`` does besides.
        anew: Do so before each forward pass, of which the model keeps something.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._flags = _Flags(module)
        self.flags_only = self.anew = False

    def enter(self) -> None:
        """Go from train mode to eval mode."""
        if not self.flags_only:
            self._flags.put(training=False)
            return
        for module in self._module.modules():
            module.training = False

    def leave(self) -> None:
        """Go to train mode."""
        self._flags.put(training=True)

    def renew(self) -> None:
        """Drop what the last forward pass left, if anything."""
        if self.anew:
            self.leave()
            self.enter()

    def changes(self, loaded: Mapping[str, Tensor]) -> list[str]:
        """Enter, from train mode; return the names of the tensors that this changes.

        Args:
            loaded: Parameters and buffers that were loaded.
        """
        before, tensors = self.kept(), dict(_own(self._module))
        self.enter()
        now = dict(_own(self._module))
        found = [name for name, tensor in now.items() if tensors.get(name) is not tensor]
        found += [name for name, w in loaded.items() if not _equal(now.get(name), w)]
        return list(dict.fromkeys([*found, *self.renewed(before)]))

    def kept(self) -> dict[str, list[tuple[Tensor, int]]]:
        """Return tensors that modules hold besides parameters and buffers, with versions."""
        found = {}
        for path, module in self._module.named_modules():
            for key, value in vars(module).items():
                if key not in _TABLES and (tensors := _tensors(value)):
                    found[f"{path}.{key}" if path else key] = [(t, _version(t)) for t in tensors]
        return found

    def renewed(self, before: Mapping[str, list[tuple[Tensor, int]]]) -> list[str]:
        """Return names of those that are others than they were."""
        same = {(id(t), version) for held in before.values() for t, version in held}
        return [
            name
            for name, held in self.kept().items()
            if any((id(tensor), version) not in same for tensor, version in held)
        ]


class _Flags:
    """Sets the flags of a module's parts, by ``train()`` where it may do more than that.

    Calls of ``train()`` from part to part take as long as a small model's forward pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts: list[nn.Module] = []
        self._held: list[int] = []

    def put(self, *, training: bool) -> None:
        """Go to train mode, or to eval mode."""
        if not self._parts or self._held != self._children():  # a forward may have added some
            if training:
                self._module.train()
            else:
                self._module.eval()
            found = list(self._module.modules())
            self._parts = found if all(map(is_usual, found)) else []
            self._held = self._children()
            return
        for part in self._parts:
            part.__dict__["training"] = training

    def _children(self) -> list[int]:
        return [id(child) for part in self._parts for child in part._modules.values()]


def is_usual(module: nn.Module) -> bool:
    """Return whether ``train()`` of a module, and its flag, are torch's own."""
    kind, own = type(module), vars(module)
    usual = all(getattr(kind, n) is getattr(nn.Module, n) for n in ("train", "eval"))
    usual = usual and kind.__setattr__ in _PLAIN_SETATTR
    return usual and not hasattr(kind, "training") and not {"train", "eval"} & own.keys()


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _tensors(value: Any) -> list[Tensor]:
    held = list(value.values()) if isinstance(value, dict) else value
    some = held if isinstance(held, (list, tuple)) else [held]
    return [one for one in some if isinstance(one, Tensor)]


def _equal(found: Tensor | None, loaded: Tensor) -> bool:
    if found is None:
        return False
    expected = loaded.to(found)
    return torch.equal(found, expected) or bool(found.isclose(expected, 0, 0, True).all())


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
