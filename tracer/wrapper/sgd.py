"""TracingSGD: the wrapper for torch.optim.SGD alone."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from tracer.errors import TracingError
from tracer.joined import members
from tracer.records import together
from tracer.wrapper.arguments import qualified
from tracer.wrapper.optimizer import TracingOptimizer


class TracingSGD(TracingOptimizer):
    """``TracingOptimizer`` around a ``torch.optim.SGD``, whose steps a replay can split.

    Raises:
        TracingError: The optimizer is another one; ``TracingOptimizer`` wraps any.
    """

    def _require(self, optimizer: Optimizer) -> None:
        if type(optimizer) is not torch.optim.SGD:
            found = together(qualified(type(one)) for one in members(optimizer))
            raise TracingError(
                f"TracingSGD wraps a torch.optim.SGD, found {found}; "
                "TracingOptimizer wraps any torch optimizer."
            )
