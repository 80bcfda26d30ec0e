"""The rooms and their order: who may import whom, and how long a module may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("tracer/*.py"), *ROOT.glob("replay/**/*.py")])
KNOWN = {p.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".") for p in MODULES}
SHARED = {
    "tracer.errors",
    "tracer.records",
    "tracer.filters",
    "tracer.update_rules",
    "tracer.reader",
}
FILES = (
    *("schema", "tables", "writer", "log_file", "opening", "reading", "reader", "resume"),
    *("repair", "chunk_index"),
)
CLICK = {"replay/program.py", "replay/commands.py", "replay/option_types.py"}
HDF5 = {*(f"tracer/{name}.py" for name in FILES), "replay/influence.py"}


def imports(path):
    """Return the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # "from tracer import schema" is an import of tracer.schema
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {m if m in KNOWN else str(node.module) for m in whole}
    return found


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports(path):
    found = imports(path)
    if path.is_relative_to(ROOT / "tracer"):
        assert not {module for module in found if module.split(".")[0] == "replay"}
    else:
        assert {m for m in found if m.split(".")[0] == "tracer"} <= SHARED
    if "h5py" in found:
        assert name(path) in HDF5
    if "click" in found:
        assert name(path) in CLICK
    if name(path).startswith("replay/gradients/"):
        ours = {m for m in found if m.split(".")[0] in ("tracer", "replay")}
        assert all(m.startswith(("replay.gradients", "tracer.errors")) for m in ours)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_length(path):
    assert len(path.read_text().splitlines()) <= 250


def test_no_cycles():
    graph = {}
    for path in MODULES:
        module = name(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        graph[module] = imports(path)
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, " -> ".join([*open_, module])
        if module in done or module not in graph:
            return
        open_.append(module)
        for following in graph[module]:
            visit(following)
        done.add(open_.pop())

    for module in list(graph):
        visit(module)
