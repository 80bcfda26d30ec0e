"""Results as labelled tables of other libraries, which are imported where they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.results.file import Content
from replay.results.influence_data import InfluenceData
from replay.results.variables import VALUE
from tracer.errors import InputError
from tracer.records import ID

COLUMNS = ("test", "train", "method", "score")


def to_dataset(
    labels: Mapping[str, Sequence[ID]], content: Content, attributes: Mapping[str, Any]
) -> Any:
    """Return an ``xarray.Dataset``: what ``xarray.open_dataset`` reads from the file."""
    xarray = needed("xarray", "to_xarray")
    variables = {}
    for kind, method, term, values in content:
        unit = str(attributes.get("unit", "")) if kind.unit == VALUE else kind.unit
        meaning = {"long_name": kind.described(method, term), "units": unit}
        variables[kind.called(method, term)] = (kind.dimensions, values, meaning)
    coordinates = {name: list(values) for name, values in labels.items()}
    return xarray.Dataset(variables, coordinates, dict(attributes))


def to_frame(table: Mapping[str, NDArray[Any]]) -> Any:
    """Return columns as a ``pandas.DataFrame``."""
    return needed("pandas", "to_pandas").DataFrame(table)


def columns(found: InfluenceData) -> dict[str, NDArray[Any]]:
    """Return the columns of a tidy table; rows of a method stand together, as in its table."""
    m, n, methods = len(found.test_ids), len(found.train_ids), list(found.scores)
    tests, trains = (np.array(ids) for ids in (found.test_ids, found.train_ids))
    values = [scores.reshape(-1) for scores in found.scores.values()]
    table = (
        np.tile(np.repeat(tests, n), len(methods)),
        np.tile(trains, m * len(methods)),
        np.repeat(np.array(methods), m * n),
        np.concatenate(values),
    )
    return dict(zip(COLUMNS, table, strict=True))


def rows(found: InfluenceData) -> Iterable[tuple[ID, ID, str, float]]:
    """Yield the rows of that table, as Python's own numbers and text."""
    for method, scores in found.scores.items():
        for test_id, row in zip(found.test_ids, scores, strict=True):
            for train_id, score in zip(found.train_ids, row.tolist(), strict=True):
                yield test_id, train_id, method, score


def needed(library: str, asked: str) -> Any:
    """Return a library that is no part of what everyone installs.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise InputError(
            f"{asked} needs {library}, which cannot be imported here ({error}).\n"
            "1. pip install 'tracin-replay[tables]'\n"
            "2. Or export to .csv, .npz or .json, which needs nothing more."
        ) from error
