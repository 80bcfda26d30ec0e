"""A row for each token of a test sequence, instead of one for the sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from replay.task import Task, collated, example_ids, ids_by_text
from replay.tasks.collators import Decoded
from replay.tasks.losses import TokenLosses
from replay.tasks.masks import ShownWithin
from tracer.errors import TaskError, shown
from tracer.records import ID

_RANKS = "token_ranks"  # in a batch: which of a row's tokens that count is measured


def by_token(task: Task) -> Task:
    """Return a task whose test rows are tokens of the sequences that another one tests.

    A row measures its token's share of the sequence's loss: the token's own loss, divided by the
    number of tokens that count. So the rows of a sequence add up to the row of the sequence. Their
    IDs are ``"ID:PLACE"``, the place in ``input_ids`` from 0 on, and ``task.test.of(ID)`` lists
    those of a sequence. Training examples stay sequences.

    Args:
        task: Made by ``causal_lm`` or ``masked_lm``, without a measure of its own.

    Raises:
        TaskError: It is another one.
    """
    if not isinstance(task.loss, TokenLosses) or task.measure is not None:
        found = "measure=" if isinstance(task.loss, TokenLosses) else f"loss={shown(task.loss)}"
        raise TaskError(
            "by_token needs a task whose loss is a mean over tokens that is known, found one with "
            f"{found}.\n1. Make it by tasks.causal_lm(...) or tasks.masked_lm(...), without "
            "measure=."
        )
    return replace(
        task,
        test=Tokens(task, task.loss),
        collate=_Collated(task.collate),
        measure=_Shares(task.loss),
        show=None if task.show is None else _Shown(task.show),
    )


class Token(NamedTuple):
    """A token of a sequence: the example, its place, and its number among those that count."""

    example: Any
    place: int
    rank: int


class Tokens(Mapping[str, Token]):
    """Tokens of test sequences, by ``"ID:PLACE"``.

    Args:
        task: Whose sequences they are.
        losses: Says which tokens count.
    """

    def __init__(self, task: Task, losses: TokenLosses) -> None:
        self._task, self._losses = task, losses
        self._known = ids_by_text(task.test)
        self._places: dict[ID, list[int]] = {}

    def of(self, identity: ID) -> list[str]:
        """Return the IDs of a sequence's tokens that count, in order."""
        return [f"{identity}:{place}" for place in self._counted(identity)]

    def __getitem__(self, key: str) -> Token:
        text, _, place = str(key).rpartition(":")
        if text in self._known and place in map(str, self._counted(self._known[text])):
            identity = self._known[text]
            rank = self._counted(identity).index(int(place))
            return Token(self._task.test[identity], int(place), rank)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        for identity in example_ids(self._task.test):
            yield from self.of(identity)

    def __len__(self) -> int:
        return sum(len(self._counted(identity)) for identity in example_ids(self._task.test))

    def _counted(self, identity: ID) -> list[int]:
        if identity not in self._places:
            labels = collated(self._task, [self._task.test[identity]])["labels"][0]
            self._places[identity] = self._losses.counted(labels)
        return self._places[identity]


@dataclass(frozen=True)
class _Collated:
    """Collates training examples as before, and tokens with their sequences."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        if not all(isinstance(one, Token) for one in examples):
            return self.collate(examples)
        ranks = torch.tensor([one.rank for one in examples])
        return {**self.collate([one.example for one in examples]), _RANKS: ranks}


@dataclass(frozen=True)
class _Shares:
    """Measures of each row what its token has of the sequence's loss."""

    losses: TokenLosses

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        rest = {name: value for name, value in batch.items() if name != _RANKS}
        each, counted = self.losses.each(model, rest)
        ranks = counted.cumsum(1) - 1
        chosen = counted & (ranks == batch[_RANKS][:, None])
        shares: Tensor = (each * chosen).sum(1) / counted.sum(1)
        return shares


@dataclass(frozen=True)
class _Shown:
    """Shows training examples as before, and of a token its sequence and its place."""

    show: Callable[[Any], Any]

    def __call__(self, example: Any) -> Any:
        if not isinstance(example, Token):
            return self.show(example)
        show, one = self.show, example.example
        if isinstance(show, ShownWithin):
            show, one = show.show, one.example
        if isinstance(show, Decoded):
            return show.at(one, example.place)
        return f"token {example.place} of", show(one)
