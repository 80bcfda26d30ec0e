"""Steps inside one call of the model, as a trainer's manual optimization takes them.

Each begins where the one before it ended: a generator's turn after a discriminator's. No hook on
the model sees that, so who runs the loop says it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tracer.watch.captures import Capture
from tracer.watch.forwards import ForwardWatch
from tracer.watch.hooks import mark
from tracer.watch.moment import Moment
from tracer.watch.state_capture import random_state


class Turns:
    """What is said of the turns of a traced run.

    Args:
        observe: Announces a micro-batch.
        forwards: Watches a model whose forward holds the turns.
        moment: Knows which steps are taken together.
    """

    def __init__(
        self, observe: Callable[..., None], forwards: ForwardWatch, moment: Moment
    ) -> None:
        self._observe, self._forwards, self._moment = observe, forwards, moment
        self._call: Capture | None = None  # where the model was called
        self._turn: Capture | None = None  # whose micro-batch was announced

    def call_begins(self) -> None:
        """Note that the model is about to be called."""
        self._call = self._turn = None

    def backward(self, loss: Tensor, batch_ids: Any, batch: Any) -> None:
        """Announce the micro-batch of a loss, before its backward pass, once in a turn.

        Where nothing was drawn since the turn began, what its loss depends on was drawn before:
        its random state is that of the call.
        """
        captures = self._forwards.captures
        if self._turn is not None and captures.is_in([self._turn]):
            return
        if captures.last is None:
            self._forwards.forward_begins()
        now = captures.last
        if now is not None:
            self._call = self._call or now
            if _alike(now, random_state(self._forwards.devices).all):
                now.random_state = self._call.random_state
            mark(captures, now, loss)
        self._turn = now
        self._observe(batch_ids, batch=batch)

    def step_begins(self, *, idle: bool) -> None:
        """Say whether the closure that a step is given computes no gradients."""
        self._moment.idle_closures = idle

    def step_ended(self) -> None:
        """Begin a turn after a step."""
        self._turn = None
        self._forwards.forward_begins()

    def call_ends(self) -> None:
        """Forget a turn that led to nothing."""
        self._forwards.captures.forget_idle()


def _alike(capture: Capture, states: Any) -> bool:
    return all(map(torch.equal, capture.random_state.all, states))
