"""Scores in files of other programs: a table of rows, arrays, or JSON; by the file's ending."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.results.influence_data import InfluenceData, Table
from replay.results.labelled import COLUMNS, columns, needed, rows
from replay.results.output import check_free, inputs_of, moved_when_whole
from tracer.errors import InputError, shown


@dataclass(frozen=True)
class Exported:
    """What other programs get of a result.

    Attributes:
        columns: Of the table.
        rows: Gives its rows, as Python's own numbers and text.
        table: Gives its columns by name.
        arrays: Gives what is an array of its own, by name.
        plain: Gives all as plain values.
        attributes: Of the result.
    """

    columns: tuple[str, ...]
    rows: Callable[[], Iterable[tuple[Any, ...]]]
    table: Callable[[], Mapping[str, NDArray[Any]]]
    arrays: Callable[[], Mapping[str, Any]]
    plain: Callable[[], Mapping[str, Any]]
    attributes: Mapping[str, Any]


def export(found: Exported, target: Path, *, overwrite: bool) -> None:
    """Write the scores of a result; see ``Influence.export``."""
    write = WRITERS.get(target.suffix.lower())
    if write is None:
        raise InputError(
            f"expected a file that ends in {', '.join(WRITERS)}, found {shown(target.name)}; the "
            "ending says in which form scores are written."
        )
    check_free(target, None, overwrite=overwrite, inputs=inputs_of(found.attributes))
    with moved_when_whole(target, overwrite=overwrite) as partial:
        write(found, partial)


def of_influence(found: InfluenceData) -> Exported:
    """Return what other programs get of influence."""
    return Exported(
        columns=COLUMNS,
        rows=partial(rows, found),
        table=partial(columns, found),
        arrays=lambda: {"test": found.test_ids, "train": found.train_ids, **found.scores},
        plain=partial(_plain, found),
        attributes=found.attributes,
    )


def to_plain(found: InfluenceData) -> dict[str, Any]:
    """Return scores and completeness as plain values; what is not a number is None."""
    return {
        "train_ids": found.train_ids,
        "scores": {method: plain_table(scores) for method, scores in found.scores.items()},
    }


def plain_table(table: Table) -> Any:
    """Return a table as lists of numbers; None is what JSON has no number for."""
    if table.ndim == 1:
        return [value if math.isfinite(value) else None for value in table.tolist()]
    return [plain_table(part) for part in table]


def _plain(found: InfluenceData) -> dict[str, Any]:
    completeness = {
        method: {term: plain_table(values) for term, values in terms.items()}
        for method, terms in found.completeness.items()
    }
    return {
        "attributes": found.attributes,
        "test_ids": found.test_ids,
        **to_plain(found),
        "completeness": completeness,
    }


def _csv(found: Exported, path: Path) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(found.columns)
        writer.writerows(found.rows())


def _parquet(found: Exported, path: Path) -> None:
    arrow, parquet = (
        needed(name, "an export to .parquet") for name in ("pyarrow", "pyarrow.parquet")
    )
    facts = {name: str(value) for name, value in found.attributes.items()}
    table = arrow.table(dict(found.table()))
    parquet.write_table(table.replace_schema_metadata(facts), path)


def _npz(found: Exported, path: Path) -> None:
    arrays = {**found.arrays(), "attributes": np.array(json.dumps(found.attributes))}
    with path.open("xb") as file:
        np.savez(file, **arrays)


def _json(found: Exported, path: Path) -> None:
    with path.open("x", encoding="utf-8") as file:
        json.dump(found.plain(), file, allow_nan=False)


WRITERS: dict[str, Callable[[Exported, Path], None]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".npz": _npz,
    ".json": _json,
}
