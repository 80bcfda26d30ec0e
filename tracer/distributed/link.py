"""Bytes from one rank to another, in a gloo group of the trace's own.

Nothing of it can come between the collectives of the training, and the training thread waits for
none of it.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_TAG = 24
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

    def send(self, data: bytes, to: int) -> None:
        """Send, and return at once.

        Raises:
            RuntimeError: The other rank has ended.
        """
        body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        for one in (torch.tensor([len(data)], device="cpu"), body):
            self._works.append(self._group.send([one], to, _TAG))
        while len(self._works) > _AHEAD:
            self._works.popleft().wait()

    def finish(self) -> None:
        """Return when all that was sent has arrived.

        Raises:
            RuntimeError: The other rank has ended.
        """
        while self._works:
            self._works.popleft().wait()

    def receive(self, source: int) -> bytes:
        """Return the next message of a rank; waits as long as that lives.

        Raises:
            RuntimeError: It has ended.
        """
        size = self._received(torch.empty(1, dtype=torch.int64, device="cpu"), source)
        body = torch.empty(int(size), dtype=torch.uint8, device="cpu")
        return self._received(body, source).numpy().tobytes()

    def _received(self, tensor: Tensor, source: int) -> Tensor:
        self._group.recv([tensor], source, _TAG).wait(_EVER)
        return tensor
