"""Scores in files of other programs: a table of rows, arrays, or JSON; by the file's ending."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from replay.results.influence_data import InfluenceData, Table
from replay.results.labelled import COLUMNS, columns, needed, rows
from replay.results.output import check_free, inputs_of, moved_when_whole
from tracer.errors import InputError, shown


def export(found: InfluenceData, target: Path, *, overwrite: bool) -> None:
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


def _csv(found: InfluenceData, path: Path) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows(found))


def _parquet(found: InfluenceData, path: Path) -> None:
    arrow, parquet = (
        needed(name, "an export to .parquet") for name in ("pyarrow", "pyarrow.parquet")
    )
    facts = {name: str(value) for name, value in found.attributes.items()}
    parquet.write_table(arrow.table(columns(found)).replace_schema_metadata(facts), path)


def _npz(found: InfluenceData, path: Path) -> None:
    facts = json.dumps(found.attributes)
    arrays: Mapping[str, Any] = {**found.scores, "attributes": np.array(facts)}
    labels: Mapping[str, Any] = {"test": found.test_ids, "train": found.train_ids}
    with path.open("xb") as file:
        np.savez(file, **labels, **arrays)


def _json(found: InfluenceData, path: Path) -> None:
    completeness = {
        method: {term: plain_table(values) for term, values in terms.items()}
        for method, terms in found.completeness.items()
    }
    content = {
        "attributes": found.attributes,
        "test_ids": found.test_ids,
        **to_plain(found),
        "completeness": completeness,
    }
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file, allow_nan=False)


WRITERS: dict[str, Callable[[InfluenceData, Path], None]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".npz": _npz,
    ".json": _json,
}
