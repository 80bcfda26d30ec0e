"""The labelled result: scores, drops and completeness, saved as HDF5 that xarray opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from replay.results.agreement import Agreement, compare
from replay.results.output import check_free, inputs_of, moved_when_whole
from tracer.errors import InputError
from tracer.records import ID

FORMAT = "tracin-influence"
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Influence:
    """Influence of N training examples on m test examples over T steps.

    Positive = proponent: the example lowered the measured test value.

    Attributes:
        test_ids: Rows, length m.
        train_ids: Columns, length N.
        scores: By method, float64 ``(m, N)``, in units of the measured test value.
        drops: By step, float64 ``(T, m)``: ``"ideal"`` the measured drops, ``"tracin"``
            ``⟨q_t, Δ_t⟩``.
        terms: By method, the terms of the completeness identity, float64 ``(T, m)`` each.
        quadrature: How ``ideal`` was integrated, ``(T, m)``: ``split_error``,
            ``theta_inside``, ``gradients``.
        attributes: Sign, unit, run, update rule, versions, choices.
        steps: The T steps of the run that were looked at.
    """

    test_ids: list[ID]
    train_ids: list[ID]
    scores: dict[str, Table]
    drops: dict[str, Table]
    terms: dict[str, dict[str, Table]]
    quadrature: dict[str, NDArray[Any]]
    attributes: dict[str, str | int | float]
    steps: list[int] = field(default_factory=list)

    @property
    def completeness(self) -> dict[str, dict[str, Table]]:
        """Return each method's terms summed over steps, float64 ``(m,)`` each."""
        return {
            method: {term: values.sum(0) for term, values in terms.items()}
            for method, terms in self.terms.items()
        }

    def top(self, test_id: ID, *, method: str | None = None, k: int = 5) -> tuple[list[ID], Table]:
        """Return the k strongest proponents of a test example, strongest first.

        Args:
            test_id: The test example.
            method: The method; default: the first of the result.
            k: How many.

        Raises:
            InputError: The test example or the method is not in the result.
        """
        return self._ranked(test_id, method, k, -1.0)

    def bottom(
        self, test_id: ID, *, method: str | None = None, k: int = 5
    ) -> tuple[list[ID], Table]:
        """Return the k strongest opponents of a test example, strongest first, as ``top``."""
        return self._ranked(test_id, method, k, 1.0)

    def agreement(self, *, k: int = 10) -> Agreement:
        """Compare every pair of methods, test example by test example.

        Args:
            k: Size of the top-k overlaps.
        """
        return compare(self.scores, k=k)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimensions ``test``, ``train`` and ``step``.

        It is written beside its place and moved there when whole.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        target = Path(path)
        check_free(target, overwrite=overwrite, inputs=inputs_of(self.attributes))
        with moved_when_whole(target) as partial, h5py.File(partial, "x", libver="latest") as file:
            self._write(file)

    @classmethod
    def load(cls, path: str | Path) -> Influence:
        """Read what ``save`` wrote.

        Raises:
            InputError: The file is missing or holds something else.
        """
        try:
            with h5py.File(path, "r") as file:
                if _plain(file.attrs.get("format")) != FORMAT:
                    raise InputError(f"{path} is not a result of tracin-replay.")
                return cls._read(file)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a result: {error}.") from error

    def _ranked(
        self, test_id: ID, method: str | None, k: int, sign: float
    ) -> tuple[list[ID], Table]:
        method = next(iter(self.scores)) if method is None else method
        if method not in self.scores:
            raise InputError(f"the result has no method {method!r}; it has {list(self.scores)}.")
        if test_id not in self.test_ids:
            raise InputError(
                f"the result has no test example {test_id!r}; it has {len(self.test_ids)}, "
                f"beginning {self.test_ids[:3]}."
            )
        row = self.scores[method][self.test_ids.index(test_id)]
        order = np.argsort(sign * row, kind="stable")[:k]
        return [self.train_ids[i] for i in order], row[order]

    def _write(self, file: h5py.File) -> None:
        lists = {"methods": self.scores, "terms": next(iter(self.terms.values()), {})}
        found = {name: " ".join(some) for name, some in lists.items()}
        _describe(file, {"format": FORMAT, **self.attributes, **found})
        steps = next((len(d) for d in self.drops.values()), 0)
        for name, labels in (
            ("test", self.test_ids),
            ("train", self.train_ids),
            ("step", self.steps or list(range(steps))),
        ):
            _labels(file, name, labels)
        for method, scores in self.scores.items():
            variable = _variable(file, method, scores, ("test", "train"))
            title = f"{method} influence; positive = proponent"
            _describe(variable, {"long_name": title, "units": str(self.attributes.get("unit", ""))})
        for name, drop in self.drops.items():
            _variable(file, f"drop_{name}", drop, ("step", "test"))
        for method, terms in self.terms.items():
            for term, values in terms.items():
                _variable(file, f"{method}_{term}", values, ("step", "test"))
        for name, values in self.quadrature.items():
            kind = np.int8 if values.dtype == bool else values.dtype
            _variable(file, f"quadrature_{name}", values.astype(kind), ("step", "test"))

    @classmethod
    def _read(cls, file: h5py.File) -> Influence:
        attributes = {key: _plain(value) for key, value in file.attrs.items() if key != "format"}
        methods = str(attributes["methods"]).split()
        split = [name for name in methods if f"drop_{name}" in file]
        terms = str(attributes.pop("terms")).split()
        kinds = {"theta_inside": bool}
        found = {
            name.removeprefix("quadrature_"): _values(file, name)
            for name in file
            if name.startswith("quadrature_")
        }
        return cls(
            test_ids=_read_labels(_values(file, "test")),
            train_ids=_read_labels(_values(file, "train")),
            scores={name: _values(file, name) for name in methods},
            drops={name: _values(file, f"drop_{name}") for name in split},
            terms={m: {term: _values(file, f"{m}_{term}") for term in terms} for m in split},
            quadrature={n: v.astype(kinds.get(n, v.dtype)) for n, v in found.items()},
            attributes=attributes,
            steps=_values(file, "step").tolist(),
        )


def save_table(
    target: Path,
    train_ids: Sequence[ID],
    columns: dict[str, NDArray[Any]],
    attributes: dict[str, str | int | float],
    *,
    overwrite: bool,
) -> None:
    """Write columns over training examples as HDF5 with the dimension ``train``."""
    check_free(target, overwrite=overwrite, inputs=inputs_of(attributes))
    with moved_when_whole(target) as partial, h5py.File(partial, "x", libver="latest") as file:
        _describe(file, attributes)
        _labels(file, "train", train_ids)
        for name, values in columns.items():
            _variable(file, name, values, ("train",))


def _describe(item: h5py.File | h5py.Dataset, attributes: Mapping[str, str | int | float]) -> None:
    """Write attributes; text of fixed length, since HDF5 hangs in damaged heaps of others."""
    for name, value in attributes.items():
        if isinstance(value, str):
            data = value.encode()
            kind = h5py.string_dtype("utf-8", max(1, len(data)))
            item.attrs.create(name, data, dtype=kind)
        else:
            item.attrs[name] = value


def _plain(value: Any) -> Any:
    found = value.item() if isinstance(value, np.generic) else value
    return found.decode() if isinstance(found, bytes) else found


def _labels(file: h5py.File, name: str, labels: Sequence[ID]) -> None:
    text = bool(labels) and isinstance(labels[0], str)
    data = file.create_dataset(
        name, data=list(labels), dtype=h5py.string_dtype() if text else np.int64
    )
    data.make_scale(name)


def _values(file: h5py.File, name: str) -> NDArray[Any]:
    """Read a dataset, if the file itself holds all that it claims."""
    link = file.get(name, getlink=True)
    data = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external or data.chunks:
        raise ValueError(f"{name} is missing, or is not stored in one piece")
    if data.nbytes > data.id.get_storage_size():
        raise ValueError(f"{name} claims {data.nbytes} bytes that the file does not hold")
    return np.asarray(data[:])


def _read_labels(values: NDArray[Any]) -> list[ID]:
    return [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]


def _variable(
    file: h5py.File, name: str, values: NDArray[Any], dimensions: Sequence[str]
) -> h5py.Dataset:
    variable = file.create_dataset(name, data=values)
    for axis, dimension in enumerate(dimensions):
        variable.dims[axis].attach_scale(file[dimension])
    return variable
