"""Bytes from one rank to another, in a gloo group of the trace's own.

Nothing of it can come between the collectives of the training, and the training thread waits for
none of it.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_TAG, _REST = 24, 25  # of what comes first of a message, and of what is longer
_HEAD, _LENGTH = 1 << 14, 8  # bytes that come first, and those of them that say how many there are
_AHEAD = 16  # messages that may be on their way
_EVER = timedelta(days=1000)


class Link:
    """Sends to other ranks of a group and receives from them, in order.

    Args:
        group: The ranks; each makes its link at the same time.
        patience: How long another rank may take.
    """

    def __init__(self, group: Any, patience: timedelta) -> None:
        ranks = dist.get_process_group_ranks(group)
        self._group: Any = dist.new_group(
            ranks, patience, backend="gloo", use_local_synchronization=True
        )
        self._works: deque[Any] = deque()
        self._places: dict[int, deque[tuple[Tensor, Any]]] = {}  # by rank, for what is to come

    def send(self, data: bytes, to: int) -> None:
        """Send, and return at once.

        Raises:
            RuntimeError: The other rank has ended.
        """
        whole = bytearray(max(_HEAD, _LENGTH + len(data)))  # each message costs both sides wakeups
        whole[:_LENGTH] = len(data).to_bytes(_LENGTH, "little")
        whole[_LENGTH : _LENGTH + len(data)] = data
        tensor = torch.frombuffer(whole, dtype=torch.uint8)
        for part, tag in ((tensor[:_HEAD], _TAG), (tensor[_HEAD:], _REST)):
            if len(part):
                self._works.append(self._group.send([part], to, tag))
        while len(self._works) > _AHEAD:
            self._works.popleft().wait()

    def finish(self) -> None:
        """Return when all that was sent has arrived.

        Raises:
            RuntimeError: The other rank has ended.
        """
        while self._works:
            self._works.popleft().wait()

    def receive(self, source: int, *, ready: int = 1) -> bytes:
        """Return the next message of a rank; waits as long as that lives.

        Args:
            source: The rank.
            ready: How many messages there is a place for. What has one is here as soon as it is
                sent, whatever becomes of the rank then; the rest waits until there is a place.

        Raises:
            RuntimeError: It has ended.
        """
        head = self._next(source, ready)
        end = _LENGTH + int.from_bytes(head[:_LENGTH], "little")
        rest = _received(*self._place(end - _HEAD, source, _REST)) if end > _HEAD else b""
        return (head + rest)[_LENGTH:end]

    def _next(self, source: int, ready: int) -> bytes:
        places = self._places.setdefault(source, deque())
        with suppress(RuntimeError):  # it has ended, and may have sent something before
            while len(places) < ready:
                places.append(self._place(_HEAD, source, _TAG))
        return _received(*(places.popleft() if places else self._place(_HEAD, source, _TAG)))

    def _place(self, size: int, source: int, tag: int) -> tuple[Tensor, Any]:
        tensor = torch.empty(size, dtype=torch.uint8, device="cpu")
        return tensor, self._group.recv([tensor], source, tag)


def _received(tensor: Tensor, work: Any) -> bytes:
    work.wait(_EVER)
    return tensor.numpy().tobytes()
