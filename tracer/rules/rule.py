"""What an update rule is: the one description of it that tracing and replay share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tracer.rules.filter import Filter

# hyperparameters of a group at a step: one that was a tensor is one, 0-dimensional, of its dtype
Numbers: TypeAlias = Mapping[str, Any]
State: TypeAlias = dict[str, Tensor]  # of one parameter, by torch.optim's names


class Now:
    """What one step of one parameter is given.

    Attributes:
        w: The parameter before the step.
        state: Its state before the step, by torch's names, without the momentum buffer.
        numbers: The group's hyperparameters at the step; of a tuple ``betas``, ``betas.0`` and so
            on. None is NaN.
        first: There is no momentum buffer yet.
        after: Gives its state after the step, if the rule is ``recorded``.
    """

    def __init__(
        self,
        w: Tensor,
        u: Callable[[], Tensor],
        state: State,
        numbers: Numbers,
        buffer: Callable[[], Tensor | None] | None,
        sparse: Tensor | None = None,
        after: Callable[[], State] = dict,
    ) -> None:
        self.w, self.state, self.numbers = w, state, numbers
        self.first, self.after = buffer is None, after
        self._u, self._buffer, self._sparse = u, buffer, sparse

    @cached_property
    def u(self) -> Tensor:
        """The effective gradient: signed, clipped, with coupled decay; of the parameter's dtype."""
        return self._u()

    @cached_property
    def total(self) -> Tensor:
        """The momentum buffer before the step as its parts add up to it; zero if there is none."""
        found = None if self._buffer is None else self._buffer()
        return torch.zeros_like(self.w) if found is None else found

    @cached_property
    def buffer(self) -> Tensor:
        """The momentum buffer before the step, in the parameter's dtype."""
        return self.total.to(self.w)

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
        largest: Hyperparameters of which a step takes the largest of all groups, which
            ``now.numbers`` has as ``lr largest`` for ``lr``.
        recorded: Whether ``now.state`` is the run's own before each step, from the log or by steps
            taken again, because it cannot be found from gradients to within their rounding.
            One that rounds its buffer when it puts it away has it in that state, too, as the step
            found it; ``now.total`` is what was put away.
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
    largest: tuple[str, ...] = ()
    recorded: bool = False

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
