"""The optimizers of a loop on accelerate, and what ``prepare`` made of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tracer.integrations.limits import refuse
from tracer.joined import Key
from tracer.unwrapping import unwrapped
from tracer.watch.captures import ALL
from tracer.wrapper.optimizer import TracingOptimizer
from tracer.wrapper.traced import Traced


class Prepared:
    """Puts what is traced into the place of each optimizer, and takes it out again.

    Args:
        accelerator: The ``Accelerator``.
        model: What the optimizers move.
        given: One, or several in a list or by name; each prepared or not.

    Raises:
        TracingError: Another one moves the model.
    """

    def __init__(self, accelerator: Any, model: Any, given: Any) -> None:
        self._given, self._known = given, _by_key(given)
        self._holders = {
            key: holder
            for key, one in self._known.items()
            for holder in accelerator._optimizers
            if holder is one or holder.optimizer is one
        }
        self._traced: dict[Key, Traced] = {}
        self._require_all(accelerator, model)

    @property
    def are_all(self) -> bool:
        """Whether each of them is prepared."""
        return len(self._holders) == len(self._known)

    @property
    def inner(self) -> Any:
        """The optimizers themselves, in the form in which they were given."""
        own = {
            key: getattr(self._holders.get(key), "optimizer", o) for key, o in self._known.items()
        }
        if isinstance(self._given, Mapping):
            return own
        return own[ALL] if ALL in own else list(own.values())

    def put_in(self, traced: TracingOptimizer) -> None:
        """Have accelerate step what is traced."""
        self._traced = {key: traced if key == ALL else traced[key] for key in self._known}
        for key, holder in self._holders.items():
            holder.optimizer = self._traced[key]

    def take_out(self) -> None:
        """Have it step the optimizers themselves."""
        for key, holder in self._holders.items():
            if holder.optimizer is self._traced[key]:
                holder.optimizer = self._traced[key].optimizer

    def whose(self, parameters: Sequence[Tensor]) -> Traced | None:
        """Return the one that moves all of these parameters, if one does."""
        wanted = {id(p) for p in parameters}
        return next((one for one in self._traced.values() if wanted <= _moved(one)), None)

    def _require_all(self, accelerator: Any, model: Any) -> None:
        inner, known = unwrapped(model), {id(holder) for holder in self._holders.values()}
        own = {id(p) for p in inner.parameters()} if isinstance(inner, nn.Module) else set()
        others = [o for o in accelerator._optimizers if id(o) not in known and own & _moved(o)]
        case = (
            bool(others),
            "moves the model by an optimizer that trace() was not given",
            "Give all of them: trace(accelerator, model, [first, second], loader, log).\n"
            "2. If an earlier one is left, call accelerator.free_memory() before prepare",
        )
        refuse("the loop", [case])


def _by_key(given: Any) -> dict[Key, Any]:
    if isinstance(given, (list, tuple)):
        return dict(enumerate(given))
    return dict(given) if isinstance(given, Mapping) else {ALL: given}


def _moved(optimizer: Any) -> set[int]:
    """Return the parameters that an optimizer moves, by ``id``."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
