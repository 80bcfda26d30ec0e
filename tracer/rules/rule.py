"""What an update rule is: the one description of it that tracing and replay share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tracer.rules.filter import Filter

# hyperparameters of a group at a step: one that was a tensor is one, 0-dimensional, of its dtype
Numbers: TypeAlias = Mapping[str, Any]
State: TypeAlias = dict[str, Tensor]  # of one parameter, by torch.optim's names


def no_steps() -> Tensor:
    """Return a count of steps, as torch.optim begins one whatever the default dtype and device."""
    return torch.zeros((), dtype=torch.float32, device="cpu")


def is_on(numbers: Numbers, option: str) -> bool:
    """Return whether an option is on; None, for which torch decides, is NaN in a log."""
    return bool(numbers.get(option) == 1)


def used(numbers: Numbers, name: str) -> Any:
    """Return a number, by default 0, as torch computes with it: fused kernels take float64."""
    value = numbers.get(name, 0.0)
    return float(value) if is_on(numbers, "fused") else value


def rate(now: Now) -> Any:
    """Return the rate of a step as torch computes with it: a tensor stays one, but in foreach."""
    lr = now.numbers["lr"]
    return float(lr) if in_foreach(now) else lr


def read(number: Tensor, numbers: Numbers) -> Any:
    """Return a number of a state as torch computes with it: a tensor where ``capturable``."""
    return number if is_on(numbers, "capturable") else float(number)


def in_foreach(now: Now) -> bool:
    """Return whether torch took the step with ``foreach``: off a CPU that is its default."""
    asked = now.numbers.get("foreach", 0.0)
    return now.w.device.type != "cpu" if math.isnan(asked) else asked == 1


def scalar(value: float) -> Tensor:
    """Return a number of a state as torch.optim begins one: float32 unless float64 is default."""
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(value, dtype=torch.float64 if wide else torch.float32, device="cpu")


def over_size(x: Tensor) -> Tensor:
    """Return ``1 / |x|``, float64, and 0 where ``x`` is 0: times ``x`` it is ``sign(x)``."""
    size = x.double().abs()
    return torch.where(size < torch.finfo(size.dtype).tiny, 0.0, size.reciprocal())


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return v.sqrt()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return torch.where(v == 0, 0.0, gradients[0] / (2 * v.sqrt()))


def root(v: Tensor) -> Tensor:
    """Return the root of a second moment, which can be differentiated.

    Where it is 0, so is the buffer that is divided by it: then the quotient is the buffer over
    ``ε`` to first order, and the root has no part in it.
    """
    return _Root.apply(v) if v.requires_grad else v.sqrt()  # type: ignore[no-untyped-call]


class Now:
    """What one step of one parameter is given.

    Attributes:
        w: The parameter before the step.
        state: Its state before the step, by torch's names, without the momentum buffer.
        numbers: The group's hyperparameters at the step; of a tuple ``betas``, ``betas.0`` and so
            on. None is NaN.
        first: There is no momentum buffer yet.
    """

    def __init__(
        self,
        w: Tensor,
        u: Callable[[], Tensor],
        state: State,
        numbers: Numbers,
        buffer: Callable[[], Tensor | None] | None,
        sparse: Tensor | None = None,
    ) -> None:
        self.w, self.state, self.numbers = w, state, numbers
        self.first = buffer is None
        self._u, self._buffer, self._sparse = u, buffer, sparse

    @cached_property
    def u(self) -> Tensor:
        """The effective gradient: signed, clipped, with coupled decay; of the parameter's dtype."""
        return self._u()

    @cached_property
    def buffer(self) -> Tensor:
        """The momentum buffer before the step; zero if there is none yet."""
        found = None if self._buffer is None else self._buffer()
        return torch.zeros_like(self.w) if found is None else found.to(self.w)

    @cached_property
    def rows(self) -> Tensor | None:
        """Which elements a sparse gradient has, bool, be they 0; None if the gradient is dense."""
        if self._sparse is None:
            return None
        whole, given = self._sparse.shape, self._sparse.sparse_dim()
        rows = torch.zeros(whole[:given], dtype=torch.bool, device=self.w.device)
        rows[tuple(self._sparse.coalesce().indices().to(rows.device))] = True
        return rows.view(*whole[:given], *[1] * (len(whole) - given)).expand(whole)


class UpdateRule:
    """How one class of optimizer moves a parameter, given the gradient that it applies.

    Subclass it for an optimizer of your own: ``step`` says how a step moves a parameter, the rest
    has defaults that suit an optimizer without a momentum buffer.

    Attributes:
        buffer: Name of the momentum buffer in torch's state; None if it has none.
        momentum: Hyperparameter (``betas.0``: the first of a tuple) with the share that is kept of
            it.
        adapts: Whether its factors depend on gradients.
        counts: Tensors of its state that gradients have no part in: numbers of steps and the like.
        linear: Tensors of its state that grow as gradients do; the others grow as their squares.
        smooth: Whether a step works element by element and has a derivative that autograd finds:
            then ``unrolled`` takes it.
        frozen: What a split takes as it was in the run, in words.
        sparse: Whether it takes sparse gradients, and what it makes of them is what ``step`` says.
        refuses: Options with which it is another rule, that is not split.
        after: Hyperparameters that a step changes and needs as they are after it: ``now.numbers``
            has them once more, as ``d after`` for ``d``.
    """

    buffer: str | None = None
    momentum: str | None = None
    adapts: bool = True
    counts: tuple[str, ...] = ("step",)
    linear: tuple[str, ...] = ()
    smooth: bool = False
    sparse: bool = False
    frozen: str = "its factors"
    refuses: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def remembers(self, used: Callable[[str], bool]) -> bool:
        """Return whether its steps depend on earlier ones.

        Args:
            used: Says whether a hyperparameter was anything but 0 in the run.
        """
        return True

    def coupled_decay(self, numbers: Numbers) -> float:
        """Return the weight decay that is added to the gradient."""
        return 0.0

    def of(self, optimizer: int) -> UpdateRule:
        """Return the rule of an optimizer of the run, by its number: this, if it has but one."""
        return self

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        """Return the state before a parameter's first step, without the buffer."""
        return {}

    def held(
        self, stored: State, group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        """Return the state and the buffer that an optimizer holds of a parameter.

        Args:
            stored: What its ``state_dict`` has of the parameter.
            group: ... and of the parameter's group.
            w: Gives the parameter.
        """
        rest = {k: v for k, v in stored.items() if k != self.buffer} if self.adapts else {}
        return rest, None if self.buffer is None else stored.get(self.buffer)

    def idle(self, w: Tensor, state: State) -> State:
        """Return the state after a step of the optimizer in which a parameter has no gradient.

        Args:
            w: The parameter.
            state: Its state before; empty if it has had no gradient yet.
        """
        return state

    def step(self, now: Now) -> tuple[Filter, State]:
        """Return the step as a linear map of ``u``, and the state after it, without the buffer.

        Args:
            now: What the step is given.
        """
        raise NotImplementedError


def coupled(numbers: Numbers) -> float:
    """Return the weight decay that is added to the gradient, unless it is decoupled."""
    decoupled = is_on(numbers, "decoupled_weight_decay")
    return 0.0 if decoupled else float(numbers.get("weight_decay", 0.0))


def decoupled(numbers: Numbers) -> float:
    """Return what share of a parameter its decay takes where an option decouples it."""
    return shrinkage(numbers) if is_on(numbers, "decoupled_weight_decay") else 0.0


def shrinkage(numbers: Numbers) -> float:
    """Return what share of a parameter its decoupled decay takes."""
    pull = used(numbers, "lr") * used(numbers, "weight_decay")
    return 1 - float(1 - pull) if isinstance(pull, Tensor) else float(pull)
