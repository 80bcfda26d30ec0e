"""Every error that this project raises on purpose.

    TracinError
    ├── TracingError            wrong use of the optimizer wrapper: IDs, arguments
    ├── LogError                a log is missing, unreadable, damaged or of a newer format
    ├── TaskError               a task does not load, or its functions return what they should not
    ├── InputError              an argument or a list of test IDs that cannot be used
    │   └── OutputExistsError   the result would overwrite a file
    ├── UnsupportedRuleError    a step of an update rule that cannot be split (yet)
    ├── NonFiniteError          a loss or a gradient is NaN or infinite
    ├── GradientError           an audit found per-example gradients that are not right
    └── MismatchError           a replayed step does not reproduce the logged one

    UserWarning
    ├── InputWarning            an argument or data that mean something else than they seem to
    ├── PrecisionWarning        a result is less precise than results usually are
    ├── LogWarning              a log was repaired, or ends before its run did
    └── TracingWarning          tracing goes on with less than was asked for, or not at all

A message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

import os
import sys
import warnings
from reprlib import Repr

_LONGEST = 2000  # characters of a message: IDs, names and lines come from users' files
_BETWEEN = ("tracer", "torch")  # packages whose frames a warning does not point at


class TracinError(Exception):
    """Base of every error raised on purpose by ``tracer`` and ``replay``; its text has an end."""

    def __init__(self, text: object = "") -> None:
        super().__init__(_bounded(str(text)))


class TracingError(TracinError):
    """The optimizer wrapper was used in a way that cannot be logged."""


class LogError(TracinError):
    """A run log is missing, unreadable, damaged, empty or of a newer format."""


class TaskError(TracinError):
    """A task does not load, does not fit the log, or returns something else than it must."""


class InputError(TracinError):
    """An argument or a list of test IDs that cannot be used."""


class OutputExistsError(InputError):
    """A file to be written exists already."""


class UnsupportedRuleError(TracinError):
    """A step's update rule cannot be split among the examples (yet)."""


class NonFiniteError(TracinError):
    """A loss or a gradient is NaN or infinite."""


class GradientError(TracinError):
    """An audit found that per-example gradients are not what plain backward passes give."""


class MismatchError(TracinError):
    """A replayed step does not reproduce the logged one."""


class InputWarning(UserWarning):
    """An argument or data that mean something else than they seem to."""


class PrecisionWarning(UserWarning):
    """A result is less precise than results usually are."""


class LogWarning(UserWarning):
    """A log was not closed by its writer: what was done, and up to which step it is whole."""


class TracingWarning(UserWarning):
    """Tracing stopped or cannot do all that was asked for, while training goes on."""


_SHORT = Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 60, 60, 30
_PRINTED = (str, bytes, int, float, complex, type(None), os.PathLike, range, slice)
_SEQUENCES = (list, tuple, set, frozenset)


def shown(value: object) -> str:
    """Return a value as a message shows it: in a few words, never a data set."""
    items = value if isinstance(value, _SEQUENCES) else [value]
    if all(isinstance(item, _PRINTED) for item in items):
        return _SHORT.repr(value)
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape"):
        return f"{kind} of shape {tuple(value.shape)}"
    try:
        return f"{kind} of length {len(value)}"  # type: ignore[arg-type]
    except TypeError:
        return f"an object of type {kind}"


def _bounded(text: str) -> str:
    """Return a message, without its middle if it is long: how it begins, and the remedies."""
    left_out = len(text) - _LONGEST
    if left_out <= 0:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} ... ({left_out} characters left out) ... {text[-half:]}"


def warn(text: str) -> None:
    """Give a TracingWarning that points at the line of the user's program that led to it."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and _package(frame.f_globals) in _BETWEEN:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(_bounded(text), TracingWarning, stacklevel=depth)


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
