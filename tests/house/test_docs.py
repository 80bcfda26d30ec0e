"""README, docs and examples: every block runs, every link leads somewhere, sentences are short.

A page is read from top to bottom, in an empty folder of its own:

- ``python``: run in one namespace for the page; with ``title="x.py"`` it is also written there;
- ``shell``: each line is run; ``make`` and ``pip`` lines are looked up, not run;
- ``text``, ``bibtex``: not run. Below a ``shell`` block, words of a ``text`` block must be words
  that its commands printed.
"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
TRAINERS = ("transformers", "lightning", "accelerate", "ignite", "skorch", "fastai")
OPTIONAL = {
    f"docs/how-to/{name}.md": name for name in TRAINERS
}  # `make test-integrations` has them
OPTIONAL["docs/how-to/lora.md"] = "peft"
TAGS = {"python", "shell", "text", "bibtex"}
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
WORD = re.compile(r"[A-Za-z]{4,}")
LONGEST = 40  # words of a sentence


@dataclass(frozen=True)
class Block:
    """A fenced block: its tag, what follows the tag, and its text."""

    tag: str
    title: str
    text: str


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found = []
    for indent, info, body in FENCE.findall(page.read_text()):
        tag, _, rest = info.partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        found.append(Block(tag, title[1] if title else "", "\n".join(lines) + "\n"))
    return found


def prose(page: Path) -> str:
    """Return a page without code, tables, headings and addresses."""
    text = FENCE.sub("\n\n", page.read_text())
    text = re.sub(r"<!--.*?-->|^---\n.*?^---\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    kept = [
        "" if line.lstrip().startswith(("|", "#", ":::", "    ", "<", "---")) else line
        for line in text.splitlines()
    ]
    return re.sub(r"^ *(?:[-*>]|\d+\.) ", "\n\n", "\n".join(kept), flags=re.MULTILINE)


def sentences(page: Path) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", prose(page))
    flat = [" ".join(paragraph.split()) for paragraph in paragraphs]
    return [one for p in flat for one in re.split(r"(?<=[.!?])[)\"*]* (?=[A-Z`\"*(\d])", p) if one]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles]
    return {title.replace(" ", "-") for title in plain}


class Reader:
    """Does what a page says, in an empty folder."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.namespace: dict[str, object] = {"__name__": page.stem}
        self.printed = ""

    def read(self, block: Block) -> None:
        if block.title:
            Path(block.title).write_text(block.text)
        if block.tag == "python":
            where = f"{name(self.page)} {block.title}"
            exec(compile(block.text, where, "exec", dont_inherit=True), self.namespace)
        elif block.tag == "shell":
            lines = block.text.replace("\\\n", " ").splitlines()
            self.printed = "".join(run(line) for line in lines)
        elif block.tag == "text" and self.printed:
            missing = set(WORD.findall(block.text)) - set(WORD.findall(self.printed))
            assert not missing, f"not printed: {sorted(missing)}; printed was:\n{self.printed}"
            self.printed = ""


def run(line: str) -> str:
    """Run a line of a shell and return what it printed."""
    match shlex.split(line, comments=True):
        case ["tracin-replay", *arguments] | ["python", "-m", "replay", *arguments]:
            return replayed(arguments)
        case ["python", script, *arguments]:
            return output(lambda: runpy.run_path(script, run_name="__main__"), script, arguments)
        case ["make", *targets]:
            known = " ".join(found_in("Makefile", r"^([a-z -]+):")).split()
            assert set(targets) <= set(known), f"Makefile has no {targets}"
        case ["pip", "install", what]:
            extras = found_in("pyproject.toml", r"^(\w+) = \[")
            assert re.fullmatch(rf"\.(\[({'|'.join(extras)})\])?", what), f"no such extra: {what}"
        case ["printf" | "cat" | "ls", *_]:
            return subprocess.check_output(line, shell=True, text=True)
        case [_, *_]:
            pytest.fail(f"a test does not know how to run {line!r}")
    return ""


def found_in(file: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)


def replayed(arguments: list[str]) -> str:
    """Run the installed program in this process."""
    ((module, function),) = found_in("pyproject.toml", r'^tracin-replay = "([\w.]+):(\w+)"')
    main = getattr(importlib.import_module(module), function)
    return output(main, "tracin-replay", arguments)


def output(program: Callable[[], object], named: str, arguments: list[str]) -> str:
    """Call a program as a shell would; return what it printed."""
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.setattr(sys, "argv", [named, *arguments])
        patch.setenv("COLUMNS", "80")
        try:
            program()
        except SystemExit as ended:
            if ended.code:
                pytest.fail(f"{named} {shlex.join(arguments)}\n{printed.getvalue()}")
    return printed.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in and import from; what was imported is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_run(page, folder):
    if name(page) in OPTIONAL:
        pytest.importorskip(OPTIONAL[name(page)], reason="needs make test-integrations")
        warnings.filterwarnings("ignore", module="lightning|transformers|torch|ignite")  # of theirs
    reader = Reader(page)
    for block in blocks(page):
        assert block.tag in TAGS, (
            f"a block of {name(page)} has the tag {block.tag!r}:\n{block.text}"
        )
        reader.read(block)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name(page)} links to {target}, which is missing"
        assert not anchor or anchor in anchors(file), f"{name(page)}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_sentences_are_short(page):
    long = [one for one in sentences(page) if len(one.split()) > LONGEST]
    assert not long, f"{len(long)} sentences of {name(page)} are too long, the first:\n{long[0]}"


def test_the_demo_runs(folder, monkeypatch):
    sys.path.insert(0, str(ROOT))
    module = "examples.digits"
    monkeypatch.delitem(sys.modules, module, raising=False)  # runpy warns of what is imported
    output(lambda: runpy.run_module(module, run_name="__main__"), module, ["--epochs", "1"])
    replayed(["--log", "run.h5", "--test", "test_ids.txt", "--ideal-tolerance", "none"])
    figure = ROOT / "docs" / "make_comparison.py"
    output(
        lambda: runpy.run_path(str(figure), run_name="__main__"),
        figure.name,
        ["run.influence.h5", "comparison.png"],
    )
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_a_site_has_every_page():
    shown = found_in("mkdocs.yml", r": ([\w/-]+\.md)$")
    assert sorted(shown) == sorted(p.relative_to(ROOT / "docs").as_posix() for p in PAGES[4:])
