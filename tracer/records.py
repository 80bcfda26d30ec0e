"""What one optimizer step was: frozen records that know nothing of HDF5."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from tracer.codec.nested import NestedError, decode
from tracer.codec.objects import rebuilt
from tracer.errors import LogError

ID: TypeAlias = int | str
_AND = " + "  # between the names of several optimizers
GRADIENT_NORM = "gradient_norm"  # its name among a group's numbers in the log
OPTIMIZER = "optimizer"  # likewise of the number of the optimizer, where a log has several


def together(names: Iterable[str]) -> str:
    """Return the names of the optimizers of a run as a log has them."""
    return _AND.join(names)


def each(names: str) -> list[str]:
    """Return the names that ``together`` has joined.

    >>> each(together(["Muon", "AdamW"]))
    ['Muon', 'AdamW']
    """
    return names.split(_AND)


@dataclass(frozen=True)
class RandomState:
    """Torch's random generators at one moment.

    Attributes:
        cpu: The CPU generator's state, uint8.
        cuda: State of each recorded CUDA device, uint8, by device index.
    """

    cpu: Tensor
    cuda: dict[int, Tensor] = field(default_factory=dict)

    @property
    def all(self) -> list[Tensor]:
        """The states, the CPU's first."""
        return [self.cpu, *self.cuda.values()]


@dataclass(frozen=True)
class Seeds:
    """What the random numbers of examples are drawn from, in one epoch.

    Attributes:
        base: The run's seed.
        epoch: From 0 on.
    """

    base: int
    epoch: int

    def of(self, identity: ID) -> int:
        """Return an example's seed, below ``2**63``: the same in every process.

        >>> Seeds(7, 0).of(3)
        7327666515775513178
        """
        text = f"{self.base}/{self.epoch}/{identity}".encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, repr=False)
class MicroBatch:
    """The examples of one forward pass, in order, with repeats.

    Attributes:
        ids: Example IDs, length ``b``.
        coefficients: ``c_i``, each loss's weight in the step's objective, float64 ``(b,)``.
        random_state: As it was when the forward began; None if no forward was seen, so
            that the pass counts as deterministic.
        payload: Gives the recorded batch, encoded; None unless ``record="batches"``.
        rank: The rank of a distributed run that it is of; those of rank 0 come first. Each rank
            begins a step with the same buffers, and goes on with those that rank 0 leaves.
        place: Log and step, for messages.
        seeds: What the data set drew its examples from; None unless ``record="seeds"``.
        optimizers: Names of those of several optimizers that took its step.
    """

    ids: tuple[ID, ...]
    coefficients: Tensor
    random_state: RandomState | None
    payload: Callable[[], bytes] | None = field(default=None, compare=False)
    rank: int = 0
    place: str = field(default="", compare=False, kw_only=True)
    seeds: Seeds | None = field(default=None, kw_only=True)
    optimizers: tuple[str, ...] = field(default=(), compare=False, kw_only=True)

    def __repr__(self) -> str:
        some = ", ".join(map(repr, self.ids[:3])) + (", ..." if len(self.ids) > 3 else "")
        return f"<MicroBatch of {len(self.ids)} examples: {some}>"

    @property
    def batch(self) -> Any:
        """The recorded batch as the loss took it, on the CPU; None if it is not recorded.

        Raises:
            LogError: It does not match its checksum, or is none.
        """
        if self.payload is None:
            return None
        try:
            return rebuilt(decode(self.payload()))
        except NestedError as error:
            raise LogError(
                f"{self.place}: a recorded batch is damaged: {error}; restore the log from a copy."
            ) from error


@dataclass(frozen=True, repr=False)
class ParameterGroup:
    """One parameter group as ``step()`` found it.

    Attributes:
        names: The model's names of its parameters.
        hyperparameters: Numbers only; a tuple is spread (``betas.0``, ``betas.1``), a
            boolean is 0 or 1, None is NaN.
        gradient_norm: Euclidean norm of the group's gradient as applied; NaN in logs that
            did not measure it.
        norms: Of each parameter's gradient, NaN where it had none; empty likewise.
        optimizer: The number of the optimizer whose group it is; 0 unless a log has several.
    """

    names: tuple[str, ...]
    hyperparameters: dict[str, float]
    gradient_norm: float = math.nan
    norms: tuple[float, ...] = ()
    optimizer: int = 0

    def __repr__(self) -> str:
        return f"<ParameterGroup of {len(self.names)} parameters: {self.hyperparameters}>"


@dataclass(frozen=True, repr=False)
class Step:
    """One optimizer step.

    Attributes:
        index: ``t``, 0-based.
        epoch: What ``optimizer.epoch`` was, or None.
        micro_batches: One for each forward pass whose gradient the step applied.
        groups: The parameter groups of the optimizers that stepped, with the hyperparameters that
            they used.
        gradient_norm: Euclidean norm of the gradient as applied, over all groups.
        clip_factor: What ``optimizer.clip_grad_norm_`` multiplied the gradient by; 1 if
            it was not called.
        without_gradient: Parameters in a group whose ``.grad`` was None.
        frozen: Parameters of the model that did not require a gradient.
    """

    index: int
    epoch: int | None
    micro_batches: tuple[MicroBatch, ...]
    groups: tuple[ParameterGroup, ...]
    gradient_norm: float
    clip_factor: float = 1.0
    without_gradient: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        examples = f"{len(self.batch_ids)} examples in {len(self.micro_batches)} micro-batches"
        return f"<Step {self.index}: {examples}, gradient norm {self.gradient_norm:.4g}>"

    @property
    def batch_ids(self) -> list[ID]:
        """IDs of every example in the step, in order, with repeats."""
        return [identity for batch in self.micro_batches for identity in batch.ids]

    @property
    def learning_rate(self) -> tuple[float, ...]:
        """The learning rate that each group used."""
        return tuple(group.hyperparameters["lr"] for group in self.groups)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each parameter, by name, in the order of the groups."""
        return {name: group.hyperparameters["lr"] for group in self.groups for name in group.names}

    @property
    def numbers(self) -> dict[str, dict[str, float]]:
        """The hyperparameters of each parameter, by name, in the order of the groups."""
        return {name: group.hyperparameters for group in self.groups for name in group.names}

    @property
    def optimizers(self) -> dict[str, int]:
        """The number of the optimizer of each parameter, by name, in the order of the groups."""
        return {name: group.optimizer for group in self.groups for name in group.names}

    @property
    def groups_by_optimizer(self) -> dict[int, list[ParameterGroup]]:
        """The groups of each optimizer that stepped, by its number."""
        found: dict[int, list[ParameterGroup]] = {}
        for group in self.groups:
            found.setdefault(group.optimizer, []).append(group)
        return found

    @property
    def moved(self) -> list[str]:
        """Names of the parameters that had a gradient, be it zero, in the order of the groups.

        Torch moves no others. A frozen parameter may be among them: decay and momentum act.
        """
        left_out = self.without_gradient
        return [name for group in self.groups for name in group.names if name not in left_out]

    @property
    def trained(self) -> list[str]:
        """Names of those among ``moved`` whose gradient is the examples'.

        A frozen parameter keeps the zero that ``zero_grad(set_to_none=False)`` left behind.
        """
        norms = {n: norm for g in self.groups for n, norm in zip(g.names, g.norms, strict=False)}
        return [name for name in self.moved if name not in self.frozen or norms.get(name, 0.0) > 0]
