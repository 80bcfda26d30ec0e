"""Whether parameters were written since a moment."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class Versions:
    """Counts what was written into tensors; writes through ``.data`` are not counted by torch.

    Args:
        tensors: To watch.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self.note()

    def note(self) -> None:
        """Take this moment."""
        self._noted = self.now()

    def now(self) -> list[int]:
        """Return how often each tensor was written."""
        return [tensor._version for tensor in self._tensors]

    @property
    def moved(self) -> bool:
        """Whether any was written since the moment that was noted."""
        return self.now() != self._noted
