"""An earlier result of the same run: did the test data change since?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from replay.results.file import Stored, open_result
from replay.results.variables import INFLUENCE, VALUES
from tracer.errors import InputError, InputWarning, shown
from tracer.records import ID

Values = Mapping[str, NDArray[np.float64]]
_SAME = (
    "run_uuid",
    "value_dtype",
    "values_before",
    "values_after",
    "grouped",
)  # else nothing is compared
_TOLERANCE = {"torch.float64": 1e-7}  # of other chunks, threads or devices
_COARSE = 1e-2  # of other dtypes


def warn_of_change(
    path: Path, test_ids: Sequence[ID], values: Values, attributes: Mapping[str, object]
) -> None:
    """Warn if a file holds a result of the same run, and other values of the same test examples.

    Args:
        path: A file; one that is missing or holds something else says nothing.
        test_ids: Test examples.
        values: Their test values at the first and the last state that was looked at.
        attributes: The result's.
    """
    if not path.is_file():
        return
    try:
        with open_result(path, INFLUENCE) as file:
            changed = _changed(file, test_ids, values, attributes)
    except InputError:
        return
    if changed:
        some = ", ".join(map(shown, changed[:3])) + (", ..." if len(changed) > 3 else "")
        warnings.warn(
            f"the test data changed since {path} was written: the same run gives other test values "
            f"for {len(changed)} of {len(test_ids)} test examples ({some}).\n"
            "1. Were they to change, keep the new result; scores of the two do not compare.\n"
            "2. If not, look at the task's test set, collate, measure and loss.",
            InputWarning,
            stacklevel=3,
        )


def _changed(
    file: Stored, test_ids: Sequence[ID], values: Values, attributes: Mapping[str, object]
) -> list[ID]:
    """Return the test examples whose values in a file are others."""
    same = all(file.attributes.get(name) == attributes.get(name) for name in _SAME)
    if not same or not all(map(file.has, VALUES.values())):
        return []
    rows = {identity: row for row, identity in enumerate(file.labels["test"])}
    both = [(k, rows[one]) for k, one in enumerate(test_ids) if one in rows]
    if not both:
        return []
    ours, theirs = (np.array(places, dtype=np.int64) for places in zip(*both, strict=True))
    tolerance = _TOLERANCE.get(str(attributes["value_dtype"]), _COARSE)
    differ = np.zeros(len(both), dtype=bool)
    for name, kind in VALUES.items():
        new, old = values[name][ours], file.read(kind)[theirs]
        differ |= np.abs(new - old) > tolerance * (1 + np.abs(old))
    return [test_ids[k] for k in ours[differ]]
