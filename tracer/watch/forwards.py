"""What was there when a training forward began: random state and buffers, as a log keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tracer.distributed.coupled import DRAWN
from tracer.distributed.data_parallel import is_coupled
from tracer.errors import warn
from tracer.joined import Key
from tracer.records import RandomState
from tracer.watch.captures import ALL, Capture, Captures, first_used
from tracer.watch.forward_warnings import (
    BY_METHOD,
    COMPILED,
    OUT_OF_SIGHT,
    RANDOM,
    SAME_MOMENT,
    UNANNOUNCED,
    writing,
)
from tracer.watch.hooks import Hooks
from tracer.watch.model_layout import ModelLayout
from tracer.watch.skipped_steps import SkippedSteps
from tracer.watch.state_capture import random_state
from tracer.watch.unseen import Unseen


class ForwardWatch:
    """Watches the forward passes of one model.

    Args:
        model: The object whose forwards count; may be compiled or wrapped.
        inner: The module that owns parameters and buffers.
        skips: Knows which steps a GradScaler skipped.

    Attributes:
        captures: Forwards since the last micro-batch.
        before_load: Called before other parameters are loaded into the model.
        step: How many steps were taken or skipped.
    """

    def __init__(self, model: nn.Module, inner: nn.Module, skips: SkippedSteps) -> None:
        self.devices = sorted({p.device.index or 0 for p in inner.parameters() if p.is_cuda})
        self._model, self._layout, self._skips = model, ModelLayout(inner), skips
        self.captures = Captures(inner.parameters())
        self._begun: dict[str, Tensor] | None = None  # as the first forward since a step found them
        self.step = 0
        self._factors: dict[Key, float] = {}  # of clipping, of all or one of the optimizers
        self.before_load: Callable[[], None] = lambda: None
        self._hooks = Hooks(self, model)
        self.attach, self.detach = self._hooks.attach, self._hooks.detach
        self._parameters = dict(inner.named_parameters())
        self._complained = self._complained_of_turns = self._complained_of_age = False
        self._complained_of_noise = False
        self._left: Tensor | None = None  # the generator after a step, if no forward is ever seen
        self._asks = True  # of the first forward
        self._versions: list[int] = []
        self._drew, self._wrote = False, list[str]()
        self._unseen: Exception | None = None  # why a forward could not be looked at

    @property
    def is_on(self) -> bool:
        """Whether it watches the model: from the wrapper's construction until it is closed."""
        return self._hooks.are_on

    def require_seen(self) -> None:
        """Warn once of forwards that no hook sees, or of one that a replay will not repeat."""
        if self._asks and self._begun is not None:
            self._asks = False
            self._say()
        if self._begun is not None or self._complained:
            return
        compiled = self._hooks.passed_by()
        if compiled or (self._layout.has_buffers and self._model.training):
            self._complained = True
            warn(COMPILED if compiled else BY_METHOD)

    def require_announced(self, count: int, key: Key) -> None:
        """Warn once if gradients of more micro-batches are there than were announced.

        Args:
            count: Of those.
            key: Whose step it is.
        """
        turns = self.captures.turns(key)
        if turns > count and not self._complained_of_turns:
            self._complained_of_turns = True
            warn(UNANNOUNCED.format(turns=turns, step=self.step, announced=count))

    def require_own_gradients(self, key: Key) -> None:
        """Warn once if one of several optimizers stepped on gradients from before another's step.

        Args:
            key: Which of them; ``ALL``: all together.
        """
        seen = self.captures.turns() or not self.captures.marks
        if key != ALL and self.step and not (seen or self._complained_of_age):
            self._complained_of_age = True
            warn(SAME_MOMENT.format(key=key, step=self.step))

    def require_in_sight(self, key: Key) -> None:
        """Warn once if one of several optimizers steps, and its noise was drawn out of sight.

        Args:
            key: Which of them; ``ALL``: all together.
        """
        if key == ALL or self._left is None or self._complained_of_noise:
            return
        if not torch.equal(self._left, torch.get_rng_state()):
            self._complained_of_noise = True
            warn(OUT_OF_SIGHT.format(step=self.step, key=key))

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers before the forward that the step begins with, else as they are.

        Raises:
            Exception: The model has changed, or a forward could not be looked at.
        """
        first = self.captures.first
        return self._own(None if first is None else first.buffers)

    @property
    def buffers_between(self) -> dict[str, Tensor]:
        """Likewise before the first forward since the last step, whatever became of it."""
        return self._own(self._begun)

    def _own(self, seen: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if self._unseen is not None:
            raise self._unseen
        if seen is None:
            return self._layout.buffers()
        self._layout.require_alike(seen)
        return seen

    def forward_begins(self) -> None:
        """Catch the state of a training forward; what goes wrong here is said at the step."""
        try:
            with Unseen():
                self._catch()
        except Exception as error:
            self._unseen = error

    def _catch(self) -> None:
        self.begin_step()
        self._factors = {}  # of gradients that were dropped; else the norm tells
        self.captures.forget_dropped()
        self._layout.put_right()
        first = self.captures.first
        begun = first is not None and first.used
        buffers = None if begun else self._layout.forward_buffers()
        self._begun = buffers if self._begun is None else self._begun
        self.captures.add(random_state(self.devices), buffers)
        if self._asks:
            self._versions = [p._version for p in self._parameters.values()]

    def forward_ends(self) -> None:
        """See whether the first forward drew random numbers, or wrote into parameters."""
        last = self.captures.last
        if not self._asks or last is None or self._unseen is not None:
            return
        with Unseen():
            pairs = zip(random_state(self.devices).all, last.random_state.all, strict=True)
            self._drew = not all(torch.equal(now, before) for now, before in pairs)
        found = zip(self._parameters.items(), self._versions, strict=True)
        self._wrote = [name for (name, p), version in found if p._version != version]

    def _say(self) -> None:
        if self._drew and self._hooks.draws_otherwise():
            warn(RANDOM)
        if self._drew and is_coupled(self._model):
            warn(DRAWN)
        if self._wrote:
            warn(writing(self._wrote))

    def observed(self) -> tuple[RandomState | None, list[Capture]]:
        """Return random state and forwards of a micro-batch that is announced; they may follow."""
        self.captures.forget_dropped()
        self.captures.forget_over()
        if self.captures.announced_first or self.captures.last is None:
            return random_state(self.devices), self.captures.announce_first()
        return self.taken()

    def taken(self) -> tuple[RandomState | None, list[Capture]]:
        """Return random state and forwards of a micro-batch whose forwards are over."""
        forwards = self.captures.take()
        first = first_used(forwards)
        return None if first is None else first.random_state, forwards

    def gradients_dropped(self, key: Key) -> None:
        """Forget forwards whose gradients ``zero_grad`` throws away.

        Args:
            key: Whose gradients.
        """
        self.captures.gradients_dropped(key)
        self._factors = {} if key == ALL else {k: f for k, f in self._factors.items() if k != key}

    def clipped(self, limit: float, norm: Tensor, key: Key) -> None:
        """Note that a gradient was clipped; the factor is as torch rounds it, to the bit.

        Args:
            limit: Its largest norm.
            norm: Its norm.
            key: Which of several optimizers' it was; ``ALL``: all of it.
        """
        self.begin_step()
        factor = float(torch.clamp(limit / (norm + 1e-6), max=1.0))
        self._factors[key] = self._factors.get(key, 1.0) * factor

    def clip_factor(self, key: Key) -> float:
        """Return what the gradient of a step was multiplied with, as far as that is recorded.

        Args:
            key: Whose step it is; where all of several optimizers step, norms tell the rest.
        """
        return math.prod(self._factors.get(one, 1.0) for one in {ALL, key})

    def begin_step(self) -> None:
        """Begin anew if a GradScaler skipped the last step."""
        if self._skips.take():
            self.step_ended()

    def step_ended(self) -> None:
        """Begin anew after a step."""
        seen = self.captures.marks or not self.captures.keys
        self._left = None if seen else torch.get_rng_state()
        self.captures.clear()
        self._begun = None
        self.step, self._factors = self.step + 1, {}

    def current_buffers(self) -> dict[str, Tensor]:
        """Return copies of the model's buffers; raises TracingError if the model changed."""
        return self._layout.buffers()
