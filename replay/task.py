"""What a replay needs and a log cannot hold: model, loss, data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from replay.losses import Loss, Losses, losses_of
from replay.showing import Shown, facts_html, shown_of
from tracer.errors import InputError, TaskError, shown
from tracer.identities import plain_id
from tracer.records import ID, Seeds
from tracer.seeds import example


@dataclass(frozen=True, repr=False)
class Task:
    """Model, losses and data of a traced run.

    Attributes:
        model: ``() -> nn.Module``, built as for the run; its weights come from the log.
        loss: ``(model, batch) -> (b,)``, each example's own loss. A mapping has one for each of
            several optimizers, by name: that of the steps that this one takes alone.
        train: Training examples by ID: a Dataset or any mapping.
        test: Test examples, likewise.
        measure: ``(model, batch) -> (m,)``, what is traced on the test side; default: ``loss``.
        penalty: ``(model) -> scalar`` added to the objective; counted as regulariser.
        collate: List of examples to a batch, as the run's DataLoader did.
        show: ``example -> text, array or image``: how a report shows an example; a tuple has
            several of them, such as a picture and its label.
    """

    model: Callable[[], nn.Module]
    loss: Losses
    train: Any
    test: Any
    measure: Loss | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None
    collate: Callable[[list[Any]], Any] = default_collate
    show: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        return "Task({})".format(
            ", ".join(f"{f.name}={_named(getattr(self, f.name))}" for f in fields(self))
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what it is made of, and how the IDs begin."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        rows = {name: _named(part) for name, part in parts.items() if part is not None}
        for side in ("train", "test"):
            rows[f"IDs of {side}"] = _first_ids(parts[side])
        return facts_html("Task", rows)

    def __post_init__(self) -> None:
        losses = list(self.losses.values())
        known = [("model", self.model), *(("loss", one) for one in losses)]
        for name, given in (*known, ("collate", self.collate)):
            if not callable(given):
                raise TaskError(
                    f"Task({name}=...) must be a function, found {type(given).__name__}."
                )
        if isinstance(self.loss, Mapping) and (not losses or self.measure is None):
            raise TaskError(
                f"Task(loss=...) has {len(losses)} losses, and Task(measure=...) has to say what "
                "is traced on the test side; pass both."
            )
        if isinstance(self.model, nn.Module):
            raise TaskError(
                "Task(model=...) must be a function that builds the model, found a module; "
                "write def model(): return Net()."
            )
        for name in ("train", "test"):
            _require_examples(name, getattr(self, name))

    @property
    def losses(self) -> dict[str, Loss]:
        """The loss of the steps of each optimizer, by name; that of all steps by no name."""
        return losses_of(self.loss)


def _named(part: Any) -> str:
    """Return a function's name, and of data what they are."""
    return getattr(part, "__name__", None) or shown(part)


def _first_ids(dataset: Any) -> str:
    keys = dataset.keys() if hasattr(dataset, "keys") else range(len(dataset))
    first = list(map(shown, islice(keys, 4)))
    first[3:] = ["..."] * (len(first) > 3)
    return ", ".join(first)


def _require_examples(name: str, data: Any) -> None:
    """Raise TaskError unless examples can be asked for by their IDs."""
    advice = "give a list, a mapping by ID, or a Dataset with __getitem__ and __len__"
    if isinstance(data, DataLoader):
        advice = "give its data set: loader.dataset"
    elif isinstance(data, type):
        advice = f"make one: {data.__name__}(...)"
    elif isinstance(data, (IterableDataset, Iterator)):
        advice = "give its examples by ID: list(data), or dict(enumerate(data))"
    elif hasattr(data, "iloc"):
        advice = "give its rows, not its columns: data.to_dict('index')"
    elif isinstance(data, (str, bytes)):
        advice = "give the examples that it names"
    elif isinstance(data, dict) and any(map(_is_data_set, data.values())):
        advice = f"give one of its parts: data[{shown(next(iter(data)))}]"
    elif hasattr(data, "__getitem__") and (hasattr(data, "__len__") or hasattr(data, "keys")):
        return
    raise TaskError(f"Task({name}=...) must hold examples by ID, found {shown(data)}; {advice}.")


def _is_data_set(value: Any) -> bool:
    """Return whether a value is torch's data set or Hugging Face's."""
    return isinstance(value, Dataset) or hasattr(value, "column_names")


def example_ids(dataset: Any) -> list[ID]:
    """Return every ID of a dataset: a mapping's keys, else ``range(len(dataset))``."""
    if hasattr(dataset, "keys"):
        return [_plain(key) for key in dataset.keys()]  # noqa: SIM118 - Mapping protocol only
    return list(range(len(dataset)))


def unknown_ids(dataset: Any, ids: Iterable[ID]) -> list[ID]:
    """Return those of ``ids`` that a dataset does not have, in order."""
    known: Any = dataset
    if not isinstance(dataset, Mapping):
        known = set(example_ids(dataset)) if hasattr(dataset, "keys") else range(len(dataset))
    return [identity for identity in ids if identity not in known]


def collated(task: Task, examples: list[Any]) -> Any:
    """Return the batch of some examples.

    Raises:
        TaskError: There is none.
    """
    batch = task.collate(examples)
    if batch is None:
        raise TaskError(
            f"task.collate returned None for a list of {len(examples)} examples; let it return "
            "the batch that task.loss takes."
        )
    return batch


def parse_test_ids(lines: Iterable[str], test: Any, side: str = "test") -> list[ID]:
    """Read test IDs, one a line; ``#`` begins a comment, blank lines are skipped.

    Args:
        lines: The text, whole or line by line.
        test: The task's test set; its keys decide which IDs exist and of which type.
        side: What messages call it; training IDs are read likewise.

    Raises:
        InputError: An ID is unknown or stands twice (with its line number), or there is none.
    """
    known = ids_by_text(test, side)
    found: dict[ID, int] = {}
    for number, line in enumerate(_lines(lines), start=1):
        text = line.strip() if line.strip() in known else line.split("#", 1)[0].strip()
        if not text:
            continue
        if text not in known:
            raise InputError(
                f"line {number}: the {side} set has no example {shown(text)}; {beginning(known)}."
            )
        identity = known[text]
        if identity in found:
            raise InputError(
                f"line {number}: {side} ID {shown(text)} stands already on line {found[identity]}; "
                "list each test example once."
            )
        found[identity] = number
    if not found:
        raise InputError(f"expected one {side} ID a line, found none.")
    return list(found)


def _lines(lines: Any) -> Iterable[str]:
    """Return lines of text; text as a whole is no sequence of its characters."""
    given = lines.splitlines() if isinstance(lines, str) else lines
    if isinstance(given, Iterable) and not isinstance(given, bytes):
        given = list(given)
        if all(isinstance(line, str) for line in given):
            return given
    raise InputError(f"expected lines of text with an ID each, found {shown(lines)}.")


def shown_example(task: Task, dataset: Any, identity: ID) -> Shown:
    """Return what ``task.show`` gives of an example; nothing if there is no ``show``.

    What a data set draws at random is drawn from a seed: the same picture at every look, and
    nobody's random numbers go on.
    """
    if task.show is None:
        return Shown()
    return shown_of(task.show(example(dataset, identity, Seeds(0, 0), identity)))


def described(task: Task, dataset: Any, identity: ID) -> str | None:
    """Return the text of what ``task.show`` gives of an example, if it gives some."""
    return shown_example(task, dataset, identity).text or None


def ids_by_text(dataset: Any, side: str = "test") -> dict[str, ID]:
    """Return a data set's IDs by what stands for them in a list or on the command line.

    Raises:
        InputError: Two have one text.
    """
    ids = example_ids(dataset)
    known = {str(identity): identity for identity in ids}
    if len(known) < len(set(ids)):
        two = next(i for i in ids if isinstance(i, int) and known[str(i)] != i)
        raise InputError(
            f"the {side} set has the IDs {two} and {shown(str(two))}, which no list of IDs tells "
            "apart; ask from Python, or give its keys one type."
        )
    return known


def beginning(ids: Collection[ID]) -> str:
    """Return how a data set's IDs begin, for messages."""
    if not ids:
        return "its examples are none: the data set is empty"
    return f"its {len(ids)} IDs begin {', '.join(map(shown, islice(ids, 3)))}"


def _plain(key: Any) -> ID:
    """Return a key as the Python integer or string that it stands for."""
    found = plain_id(key)
    if found is None:
        raise TaskError(
            f"IDs are integers or strings, found the key {shown(key)} of type {type(key).__name__}."
        )
    return found
