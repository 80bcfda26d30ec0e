"""Result files: HDF5 with dimension scales, written whole, read with suspicion.

What a file holds is in ``replay.results.variables``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from replay.arguments import place
from replay.results.checksums import CHECKSUM, of_attributes, of_values
from replay.results.image import Image
from replay.results.output import check_free, inputs_of, moved_when_whole, stated_format
from replay.results.variables import FORMATS, RUN_LOG, VALUE, Format, Variable
from tracer.errors import InputError, shown
from tracer.hdf5.opening import open_hdf5
from tracer.identities import fault_of, plain_ids
from tracer.records import ID

Content = Iterable[tuple[Variable, str, str, NDArray[Any]]]  # method and term name the variable
_MAPPED = 1 << 25  # bytes of a variable that is looked at where it is, not read
_READABLE = ("v110", "v110")  # by every HDF5 from 1.10 on
Attributes = Mapping[str, str | int | float]


def write_result(
    target: Path,
    kind: Format,
    labels: Mapping[str, Sequence[ID]],
    content: Content,
    attributes: Attributes,
    *,
    overwrite: bool,
) -> None:
    """Put a result together in memory, write it beside its place and move it there when whole.

    Args:
        target: Where it is to stand.
        kind: Which result it is.
        labels: The IDs or numbers along each of its dimensions.
        content: Its variables, each with the method and the term that it belongs to, or ``""``.
        attributes: Run, choices, versions.
        overwrite: Whether it may replace a file.

    Raises:
        OutputExistsError: The file exists and ``overwrite`` is off.
        InputError: It is the run's log or task, or no regular file, or cannot be written.
    """
    check_free(target, kind, overwrite=overwrite, inputs=inputs_of(attributes))
    facts = {"format": kind.name, "format_version": kind.version, **attributes}
    image = Image()
    with h5py.File(image, "w", libver=_READABLE) as file:
        _describe(file, {**facts, CHECKSUM: of_attributes(_plain_values(facts))})
        for name in labels:
            _write_labels(file, name, labels[name])
        for variable, method, term, values in content:
            values = np.asarray(values).astype(_stored(variable), copy=False)
            stored = image.add(file, variable.called(method, term), values)
            for axis, dimension in enumerate(variable.dimensions):
                stored.dims[axis].attach_scale(file[dimension])
            unit = str(attributes.get("unit", "")) if variable.unit == VALUE else variable.unit
            meaning = {"long_name": variable.described(method, term), "units": unit}
            _describe(stored, {**meaning, CHECKSUM: of_values(values)})
    with moved_when_whole(target, overwrite=overwrite) as partial:
        image.save(partial)


class Stored:
    """An open result file, of a format that was checked.

    Attributes:
        labels: IDs and numbers by dimension.
        attributes: As they were given, without format and version.
    """

    def __init__(self, file: h5py.File, kind: Format) -> None:
        self._file = file
        found = _plain_values(file.attrs)
        self._sums = found.get("format_version", 0) > 0  # the first files had none
        if self._sums and found.get(CHECKSUM) != of_attributes(found):
            raise ValueError("its attributes do not match their checksum")
        held = [name for name in kind.dimensions if name in file or name not in kind.sometimes]
        self.labels = {name: _read_labels(self._values(name)) for name in held}
        own = ("format", "format_version", CHECKSUM)
        self.attributes = {k: v for k, v in found.items() if k not in own}

    def has(self, variable: Variable, method: str = "", term: str = "") -> bool:
        """Return whether the file holds a variable."""
        return variable.called(method, term) in self._file

    def read(self, variable: Variable, method: str = "", term: str = "") -> NDArray[Any]:
        """Return a variable's values.

        Raises:
            ValueError: They are missing or do not fit the file's dimensions.
        """
        name = variable.called(method, term)
        values = self._values(name)
        shape = tuple(len(self.labels[dimension]) for dimension in variable.dimensions)
        if values.shape != shape:
            raise ValueError(f"{name} is of shape {values.shape}, its dimensions say {shape}")
        return values.astype(variable.dtype, copy=False)

    def _values(self, name: str) -> NDArray[Any]:
        values = _values(self._file, name)
        if self._sums and _plain(self._file[name].attrs.get(CHECKSUM)) != of_values(values):
            raise ValueError(f"{name} does not match its checksum")
        return values


@contextmanager
def open_result(path: str | Path, kind: Format) -> Iterator[Stored]:
    """Give an open result file.

    Raises:
        InputError: The file is missing, damaged, another kind of file, or of a newer format.
    """
    path = place("a result", path)
    try:
        with open_hdf5(path, "r") as file:
            _check_format(path, file, kind)
            yield Stored(file, kind)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    """Return why a file cannot be read, without HDF5's own words where ours are clearer."""
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
        return f"there is no result {shown(str(path))}; check the path."
    if path.is_dir():
        return f"{path} is a folder; expected a result such as run.influence.h5."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} may not be read; change its permissions."
    if isinstance(error, OSError) and not h5py.is_hdf5(path):
        return f"{path} is not an HDF5 file; expected a result such as run.influence.h5."
    return f"{path} is a damaged result: {error}. Restore it from a copy, or compute it again."


def _check_format(path: Path, file: h5py.File, kind: Format) -> None:
    """Raise InputError unless a file is of a kind and of a version that can be read."""
    found = stated_format(file)
    others = {other.name: other for other in FORMATS if other != kind}
    if found in others:
        other = others[found]
        raise InputError(
            f"expected {kind.content}, and {path} holds {other.content}; read that with "
            f"{other.loader}."
        )
    if found == RUN_LOG:
        raise InputError(
            f"{path} is a run log, not a result; read it with tracer.open_log, replay it with "
            "replay.Replay (tracin-replay --log)."
        )
    if found != kind.name:
        raise InputError(f"{path} is not a result of tracin-replay.")
    version = _plain(file.attrs.get("format_version", 0))  # the first ones had none
    if not isinstance(version, int) or version < 0:
        raise ValueError(f"its format version is {version!r}")
    if version > kind.version:
        raise InputError(
            f"{path} has result format {version}, this version reads up to {kind.version}; "
            "upgrade tracin-replay."
        )


def _describe(item: h5py.File | h5py.Dataset, attributes: Attributes) -> None:
    """Write attributes; text of fixed length, since HDF5 hangs in damaged heaps of others."""
    for name, value in attributes.items():
        if isinstance(value, str):
            data = value.encode()
            kind = h5py.string_dtype("utf-8", max(1, len(data)))
            item.attrs.create(name, data, dtype=kind)
        else:
            item.attrs[name] = value


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    found = value.item() if isinstance(value, np.generic) else value
    return found.decode() if isinstance(found, bytes) else found


def _write_labels(file: h5py.File, name: str, labels: Sequence[ID]) -> None:
    plain = plain_ids(labels)
    fault = fault_of(plain)
    if fault:
        raise InputError(
            f"the result cannot be written: its {name} IDs must be all integers of 64 bits or all "
            f"text without NUL; {fault}."
        )
    text = bool(plain) and isinstance(plain[0], str)
    data = file.create_dataset(name, data=plain, dtype=h5py.string_dtype() if text else np.int64)
    data.make_scale(name)
    data.attrs[CHECKSUM] = of_values(data[:])


def _stored(variable: Variable) -> str:
    return "int8" if variable.dtype == "bool" else variable.dtype


def _values(file: h5py.File, name: str) -> NDArray[Any]:
    """Read a dataset, if the file itself holds all that it claims."""
    link = file.get(name, getlink=True)
    data = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external or data.chunks:
        raise ValueError(f"{name} is missing, or is not stored in one piece")
    if data.nbytes > data.id.get_storage_size():
        raise ValueError(f"{name} claims {data.nbytes} bytes that the file does not hold")
    if data.nbytes > _MAPPED and data.dtype.kind != "O":
        where = data.id.get_offset()
        return np.memmap(file.filename, data.dtype, "r", where, data.shape)
    return np.asarray(data[:])


def _read_labels(values: NDArray[Any]) -> list[ID]:
    return [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
