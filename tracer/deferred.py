"""A package's public names, each imported when it is asked for: torch takes a second or more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def deferred(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``: names by the modules that have them, modules, version."""

    def found(name: str) -> Any:
        if name == "__version__":
            value: Any = import_module("importlib.metadata").version("tracin-replay")
        elif name in homes:
            value = getattr(import_module(homes[name]), name)
        elif not name.startswith("_") and find_spec(f"{package}.{name}"):
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # it is not asked for again
        return value

    return found
