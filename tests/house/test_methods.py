"""A method is one file and one row: nobody else spells its name."""

from __future__ import annotations

import ast

import pytest

from replay.methods.names import DEFAULT, NAMES
from replay.methods.table import METHODS
from tests.helpers.places import ROOT

FILES = [p for room in ("tracer", "replay") for p in sorted((ROOT / room).rglob("*.py"))]


def literals(path):
    """Return the strings of a file that are no docstrings."""
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return {node.value for node in constants if isinstance(node.value, str)}


@pytest.mark.parametrize("name", METHODS)
def test_only_its_file_spells_a_method(name):
    spelling = [path.relative_to(ROOT) for path in FILES if name in literals(path)]
    assert len(spelling) == 1
    assert spelling[0].parent.as_posix() == "replay/methods"


def test_rows():
    assert DEFAULT == ("tracin", "ideal", "tracincp")
    assert list(METHODS) == list(NAMES)
    for method in METHODS.values():
        ways = [method.divide, method.credit, method.unroll, method.score]
        assert sum(way is not None for way in ways) == 1
        assert method.walks == (method.score is None)
