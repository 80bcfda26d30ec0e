"""What is installed is what the constraints files say, and the package knows its version."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import replay
import tracer

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(name, python=None):
    """Return the pins of a constraints file that hold here, or for another Python, by package."""
    else_here = {} if python is None else {"python_version": python, "python_full_version": python}
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        (exact,) = pin.specifier
        assert exact.operator == "==", line
        if pin.marker is None or pin.marker.evaluate(else_here):
            assert found.setdefault(canonicalize_name(pin.name), exact.version) == exact.version
    return found


def minima():
    """Return the lowest versions that pyproject.toml states, by package."""
    text = (ROOT / "pyproject.toml").read_text()
    return {
        canonicalize_name(name): Version(lowest)
        for name, lowest in re.findall(r'"([\w-]+)>=([\d.]+)"', text)
    }


def installed(name, extras=("",), seen=None):
    """Return the installed packages that one needs, and those that these need."""
    seen = set() if seen is None else seen
    for line in metadata.requires(name) or ():
        needed = Requirement(line)
        if needed.marker and not any(needed.marker.evaluate({"extra": e}) for e in extras):
            continue
        key = (canonicalize_name(needed.name), frozenset(needed.extras))
        try:
            metadata.distribution(needed.name)
        except metadata.PackageNotFoundError:
            continue
        if key not in seen:
            seen.add(key)
            installed(needed.name, ("", *needed.extras), seen)
    return {package for package, _ in seen}


def test_what_is_installed_is_pinned():
    stamp = Path(sys.prefix) / ".installed"
    name = stamp.read_text().strip() if stamp.exists() else ""
    if not name:
        pytest.skip(f"{sys.prefix} was not installed by make, so not from a constraints file")
    found = installed("tracin-replay", ("", "dev")) - {"tracin-replay"}
    assert {"torch", "mpmath", "pytest"} <= found
    pinned = pins(name)
    differing = {
        package: (metadata.version(package), pinned.get(package))
        for package in found | {"setuptools"}  # which builds the package
        if package not in pinned or Version(metadata.version(package)).public != pinned[package]
    }
    assert not differing


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_has_its_pins(python):
    pinned = pins("constraints.txt", python)
    for package, lowest in minima().items():
        assert Version(pinned[package]) >= lowest, package


def test_the_oldest_are_the_minima():
    pinned = pins("constraints-oldest.txt")
    stated = {p: v for p, v in minima().items() if p in pinned}
    assert {"torch", "h5py", "numpy", "setuptools"} <= set(stated)
    assert {p: Version(pinned[p]) for p in stated} == stated


def test_version():
    assert tracer.__version__ == replay.__version__ == metadata.version("tracin-replay")
