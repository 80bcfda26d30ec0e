"""The rooms and their order: who may import whom, and how long a module may be."""

from __future__ import annotations

import ast

import pytest

from tests.helpers.places import ROOT, TESTS

MODULES = sorted([*ROOT.glob("tracer/**/*.py"), *ROOT.glob("replay/**/*.py")])
ORDER = [  # each may import what stands before it, and its own room
    *(
        "tracer.errors",
        "tracer.deferred",
        "tracer.loading",
        "tracer.unwrapping",
        "tracer.codec",
        "tracer.records",
        "tracer.joined",
        "tracer.full_state",
        "tracer.seeds",
        "tracer.identities",
        "tracer.rules",
        "tracer.hdf5",
    ),
    *("tracer.log.parts", "tracer.log", "tracer.log.read", "tracer.log.write"),
    *("tracer.thread", "tracer.distributed", "tracer.watch"),
    *(
        "tracer.wrapper",
        "tracer",
        "tracer.integrations",
        "replay.names",
        "replay.showing",
        "replay.losses",
        "replay.task",
        "replay.tasks",
        "replay.loading",
        "replay.arguments",
    ),
    *("replay.progress", "replay.processes", "replay.vectors"),
    *("replay.gradients.operations", "replay.gradients.forms", "replay.gradients.readers"),
    *("replay.gradients.proof", "replay.gradients", "replay.evaluate", "replay.states"),
    *("replay.counterfactual", "replay.steps", "replay.path", "replay.methods", "replay.results"),
    *("replay.session", "replay.plots", "replay.report"),
    *("replay", "replay.command.terminal", "replay.command.show", "replay.command"),
    "replay.command.jobs",
    "replay.__main__",
]
SHARED = (
    *("tracer.errors", "tracer.deferred", "tracer.loading", "tracer.unwrapping"),
    *("tracer.records", "tracer.seeds"),
    *("tracer.identities", "tracer.rules", "tracer.hdf5.opening"),
    *(
        "tracer.full_state",
        "tracer.joined",
        "tracer.watch.gradients",
        "tracer.log.write.conversion",
    ),
    *("tracer.log.read.run_log", "tracer.log.read.summary"),
)
CHECKED_AT_ONCE = "tracer.wrapper.first_steps"  # imports replay inside functions, when it checks
ONLY = {  # heavy libraries, and the rooms that may import them
    "h5py": ("tracer.hdf5", "tracer.log", "replay.results"),
    "click": ("replay.command",),
    "rich": ("replay.command", "replay.progress"),
    "matplotlib": ("replay.plots", "replay.report"),
    "jinja2": ("replay.report",),
}


def name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


KNOWN = {name(path) for path in MODULES}


def imports(path):
    """Return the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # "from tracer.log import schema" is an import of tracer.log.schema
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {m if m in KNOWN else str(node.module) for m in whole}
    return found


def at_the_top(path):
    """Return the modules that a file imports when it is imported itself."""
    tree = ast.parse(path.read_text())
    names = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    return names | {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}


def within(module, rooms):
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


def floor(module):
    """Return the place in ``ORDER`` of the room that a module is in."""
    return ORDER.index(max((r for r in ORDER if within(module, [r])), key=len))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports(path):
    module, found = name(path), imports(path)
    if module == CHECKED_AT_ONCE:
        assert "replay" not in {m.partition(".")[0] for m in at_the_top(path)}
        found = {m for m in found if not within(m, ["replay"])}
    ours = {m for m in found if within(m, ["tracer", "replay"])}
    assert not {m for m in ours if floor(m) > floor(module)}, "imports go downwards"
    if within(module, ["replay"]):
        assert all(within(m, SHARED) for m in ours if within(m, ["tracer"]))
    if within(module, ["replay.gradients"]):
        assert all(within(m, ["replay.gradients", "replay.vectors", "tracer.errors"]) for m in ours)
    for library, rooms in ONLY.items():
        assert library not in {m.split(".")[0] for m in found} or within(module, rooms)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_length(path):
    assert len(path.read_text().splitlines()) <= 250


def test_tests_and_helpers_are_short():
    lengths = {name(path): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert not {path: length for path, length in lengths.items() if length > 400}


def test_no_cycles():
    graph = {name(path): imports(path) for path in MODULES}
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
