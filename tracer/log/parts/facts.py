"""What holds for every step of a log, and the kinds of tables that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tracer.codec.layout import Field
from tracer.records import OPTIMIZER


@dataclass(frozen=True)
class Facts:
    """What holds for every step of a log.

    Attributes:
        parameters: Layout of a row of parameters.
        buffers: Layout of a row of buffers.
        hyperparameters: Names of the numbers logged for each group; of several optimizers that of
            each begins with the optimizer's number, ``1/lr``.
        devices: The CUDA devices whose random state is logged.
        random_bytes: Length of a row of random state; 0 where a log is read.
        optimizers: Names of several optimizers, in order; none of a single one.
        data_seed: What examples were drawn from; None unless ``record="seeds"``.
    """

    parameters: tuple[Field, ...]
    buffers: tuple[Field, ...]
    hyperparameters: tuple[str, ...]
    devices: tuple[int, ...] = ()
    random_bytes: int = 0
    data_seed: int | None = None
    optimizers: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(field.name for field in self.parameters)

    @property
    def has_several(self) -> bool:
        """Whether several optimizers took the steps."""
        return OPTIMIZER in self.hyperparameters

    def columns(self, hyperparameter: str) -> list[int]:
        """Return which of a group's numbers are a hyperparameter: of several optimizers, each's."""
        plain = self.hyperparameters
        if self.has_several:
            plain = tuple([name.partition("/")[2] for name in plain])
        return [k for k, name in enumerate(plain) if name == hyperparameter]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Place of each parameter in ``names``."""
        return {name: k for k, name in enumerate(self.names)}


@dataclass(frozen=True)
class Table:
    """A growing dataset.

    Attributes:
        dtype: Type of its elements.
        width: Gives the columns of a row; None if a row is one element.
        chunk: Rows of an HDF5 chunk, where a row is one element.
        on_change: Whether a row is appended only if it differs from the last one.
        deflated: Whether HDF5 shuffles and deflates it.
    """

    dtype: np.dtype[Any]
    width: Callable[[Facts], int] | None = None
    chunk: int = 256
    on_change: bool = False
    deflated: bool = False
