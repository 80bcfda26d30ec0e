"""Notebooks of examples/: their cells run from top to bottom, and show what they end with."""

from __future__ import annotations

import ast
import json

import pytest
from matplotlib.figure import Figure

from replay import Influence
from tests.helpers.places import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def last_values(path):
    """Run the cells in one namespace; return what those that end with an expression show."""
    namespace, found = {}, []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        tree, where = ast.parse(source), f"{path.name}, cell {number}"
        ends = tree.body[-1]
        if isinstance(ends, ast.Expr):
            tree.body.pop()
        exec(compile(tree, where, "exec"), namespace)
        if isinstance(ends, ast.Expr):
            found.append(eval(compile(ast.Expression(ends.value), where, "eval"), namespace))
    return [value for value in found if value is not None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = last_values(path)
    assert any(isinstance(value, Influence) for value in shown)
    figures = [value for value in shown if isinstance(value, Figure)]
    assert len(figures) > 4
    assert len(figures) + 1 == len(shown)
    (page,) = tmp_path.glob("*.html")
    assert 100_000 < page.stat().st_size < 5_000_000


def test_there_is_one():
    assert NOTEBOOKS
