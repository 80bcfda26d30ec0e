"""From examples of a language model to a batch, and to what people read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import default_collate

from tracer.errors import TaskError

LABELS = ("label", "label_ids", "labels")


class Collate:
    """Gives a collator what a Trainer leaves of an example.

    Args:
        collate: The collator.
        columns: Names of what is left; None is all.
    """

    # a class, so that workers can pickle it
    def __init__(self, collate: Callable[[list[Any]], Any], columns: Sequence[str] | None) -> None:
        self._collate, self._columns = collate, columns

    def __call__(self, examples: list[Any]) -> Any:
        """Return the batch of some examples."""
        if self._columns is not None:
            examples = [{k: e[k] for k in self._columns if k in e} for e in examples]
        return self._collate(examples)


def collate_of(
    kind: str,
    settings: dict[str, Any],
    collate: Callable[[list[Any]], Any] | None,
    tokenizer: Any,
    columns: Sequence[str] | None,
) -> Collate:
    """Return the collate function of a ready task.

    Args:
        kind: The class in transformers that makes a collator of a tokenizer.
        settings: Of that class.
        collate: The run's own; None for one of the tokenizer, or torch's if there is none.
        tokenizer: May be None.
        columns: What of an example the collator gets; None is all, or what a tokenizer names.
    """
    if collate is not None or tokenizer is None:
        return Collate(collate or default_collate, columns)
    names = (*getattr(tokenizer, "model_input_names", ()), *LABELS)
    made = _transformers(kind)(tokenizer, **settings)
    return Collate(made, names if columns is None else columns)


def _transformers(kind: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise TaskError(
            "tokenizer= makes a collator of transformers, which is not installed.\n"
            "1. pip install 'tracin-replay[transformers]'\n"
            "2. Or pass collate=, a function of your own."
        ) from error
    return getattr(transformers, kind)


class Decoded:
    """Shows an example as its tokenizer reads it.

    Args:
        tokenizer: Has ``decode``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, example: Any) -> str:
        """Return the text of an example."""
        return self._text(example["input_ids"])

    def at(self, example: Any, place: int) -> str:
        """Return the text with one of its tokens in brackets."""
        words = list(example["input_ids"])
        parts = words[:place], words[place : place + 1], words[place + 1 :]
        before, here, after = (self._text(part) for part in parts)
        return f"{before} [{here}] {after}".strip()

    def _text(self, words: Any) -> str:
        return str(self._tokenizer.decode(words, skip_special_tokens=True))
