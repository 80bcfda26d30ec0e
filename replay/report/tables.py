"""Tables of the page: each number as people read it, with its exact value beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from replay.report.views import View
from replay.results.summary import number


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What is read.
        value: What it is sorted by, exactly: a number as Python writes it, or its text.
        mark: A class that makes it stand out, or ``""``.
        view: An example that it shows instead of the text.
    """

    text: str
    value: str
    mark: str = ""
    view: View | None = None

    @property
    def is_number(self) -> bool:
        """Whether it stands to the right and sorts as a number."""
        return "number" in self.mark


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        columns: Headings.
        rows: Cells of each row; the first is its heading.
        marks: A class of each row, or ``""``.
        name: What it lists, for those who do not see it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    name: str
    marks: Sequence[str] = field(default_factory=list)

    @property
    def marked(self) -> list[tuple[str, Sequence[Cell]]]:
        """The rows, each with its class."""
        marks = [*self.marks, *[""] * (len(self.rows) - len(self.marks))]
        return list(zip(marks, self.rows, strict=True))


def numeric(value: float, mark: str = "", digits: int = 4) -> Cell:
    """Return a number's cell."""
    shown = number(value, digits).replace("-", "−") if math.isfinite(value) else _words(value)
    return Cell(shown, repr(float(value)), f"number {mark}".strip())


def counted(value: int) -> Cell:
    """Return a whole number's cell."""
    return Cell(f"{value:,}", str(value), "number")


def words(text: object, mark: str = "") -> Cell:
    """Return a text's cell."""
    return Cell(str(text), str(text), mark)


def example(view: View) -> Cell:
    """Return the cell of an example."""
    return Cell(str(view.identity), str(view.identity), "example", view)


def signed(value: float) -> str:
    """Return a number with its sign, as large text has it.

    >>> signed(4.2), signed(-0.131)
    ('+4.2', '−0.131')
    """
    if not math.isfinite(value):
        return _words(value)
    return ("+" if value > 0 else "") + number(value, 3).replace("-", "−")


def _words(value: float) -> str:
    return "n/a" if math.isnan(value) else "−∞" if value < 0 else "∞"
