"""What a step is about to do: hyperparameters, and the size of the gradient that it applies."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from tracer.joined import Joined, members
from tracer.log.parts.hyperparameters import column
from tracer.records import GRADIENT_NORM, OPTIMIZER
from tracer.watch.group_look import GroupLook, Seen
from tracer.watch.model_layout import ModelLayout


class Measurement:
    """Looks at the optimizers of a run and the model whose parameters they move."""

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._layout, self._has_several = ModelLayout(model), isinstance(optimizer, Joined)
        self.parameters = dict(model.named_parameters())
        names = {id(p): name for name, p in self.parameters.items()}
        self._optimizers = members(optimizer)
        self._looks = [GroupLook(one, k, names) for k, one in enumerate(self._optimizers)]
        self._known: list[list[str]] = []  # numbers that the log has of each optimizer's groups

    def require_same(self) -> None:
        """Raise TracingError if the model's tensors are not those that the log has rows for."""
        self._layout.require()

    def seen(self, optimizer: Optimizer) -> Seen:
        """Return what one of the optimizers is about to apply; inside ``torch.no_grad()``.

        Raises:
            TracingError: Its groups hold a parameter that is not logged.
        """
        self._known = self._known or [look.hyperparameters() for look in self._looks]
        number = next(k for k, one in enumerate(self._optimizers) if one is optimizer)
        return self._looks[number].seen(self._known[number])

    def hyperparameters(self) -> list[str]:
        """Return the names of the numbers that are logged of each group."""
        found = [look.hyperparameters() for look in self._looks]
        if not self._has_several:
            return [*found[0], GRADIENT_NORM]
        own = [column(k, name) for k, names in enumerate(found) for name in names]
        return [OPTIMIZER, *own, GRADIENT_NORM]

    def frozen(self) -> frozenset[str]:
        """Return the parameters that do not require a gradient."""
        return frozenset([name for name, p in self.parameters.items() if not p.requires_grad])
