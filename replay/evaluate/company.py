"""Whether what is computed of an example depends on its company, at every state.

Sums and products mix examples at every state or at none, which a few states show. What *decides*
by numbers (a router with a capacity, a sort, a comparison) may mix them at some states only. Where
the operations of a forward pass decide nothing, the few states are enough; else examples are
compared in other company at every state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from replay.evaluate.binding import without_graph
from replay.evaluate.state import State
from replay.evaluate.test_side import Examples

_NAMES = (
    "argmax argmin max min aminmax topk sort argsort kthvalue median nanmedian mode msort nonzero "
    "masked_select searchsorted bucketize histc multinomial bernoulli unique_dim _unique2 gt lt ge "
    "le eq ne isclose equal isin round floor ceil trunc fix sign sgn heaviside floor_divide "
    "_local_scalar_dense is_nonzero"
)
_DECIDE = frozenset(_NAMES.split())


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the operations that decide by numbers which may depend on the data.

    Args:
        own: The model's tensors, of which alone nothing is said about any example.
    """

    def __init__(self, own: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {id(tensor): tensor for tensor in own}  # alive: no id is used again
        self.found: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # or torch's compiler is imported, for a second: _eager
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [one for one in _tensors((args, kwargs)) if id(one) not in self._own]
        made = list(_tensors(result))
        if not given:
            self._own.update((id(one), one) for one in made)
        elif any(map(_is_real, given)) and _decides(func, made):
            self.found.add(str(func))
        return result


def _decides(func: Any, made: list[Tensor]) -> bool:
    if getattr(func, "namespace", "") not in ("aten", "prim", "prims"):  # of anybody's own
        return True
    name = func.overloadpacket.__name__.rstrip("_")
    # dtypes that hold whole numbers: x.long()
    return name in _DECIDE or (name == "_to_copy" and any(not _is_real(one) for one in made))


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tensors(value: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(value) if isinstance(one, Tensor))


def _eager() -> AbstractContextManager[Any]:
    """Run compiled parts as they are written, if something may be compiled in this process."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def deciding(examples: Examples, state: State) -> set[str]:
    """Return the operations that decide in a pass of all examples, where values are taken."""
    bound, columns = examples.models.value, list(range(len(examples)))
    bound.load_for_eval(state)
    batch = examples.batches.of(columns, bound.dtype)
    watch = _Watch([*bound.parameters.values(), *bound.module.buffers()])
    try:
        with _eager(), watch:
            without_graph(lambda: examples.function(bound.module, batch))
    except (NotImplementedError, RuntimeError, TypeError) as error:  # operations of anybody's own
        return {*watch.found, str(error)}
    return watch.found
