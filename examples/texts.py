"""Texts with a class: docstrings of Python's own standard library, or DBpedia's csv files."""

from __future__ import annotations

import ast
import csv
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

AREAS = {  # of the library, and the modules and packages whose docstrings are read
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading",
    "data types": "bisect calendar collections datetime decimal fractions random statistics",
    "files": "csv fileinput glob gzip lzma pathlib shutil tarfile tempfile zipfile",
    "internet": "email ftplib http imaplib ipaddress poplib smtplib socketserver urllib xmlrpc",
    "language": "ast dis importlib inspect pickle pickletools tokenize traceback types typing",
    "testing": "bdb cProfile doctest logging pdb pstats timeit trace unittest warnings",
}
SHORTEST = 5  # words of a docstring that is used
WORD = re.compile(r"[a-z]+")


class Text(NamedTuple):
    """A text of a class."""

    label: str
    name: str  # where it stands, or its title
    text: str


def docstrings(library: Path | None = None, areas: dict[str, str] = AREAS) -> list[Text]:
    """Return docstrings of the standard library, by area and name; each text once.

    They are read from source files and nothing is imported, so the order is the same everywhere.
    What they say is that of the Python that runs this.
    """
    library = Path(sysconfig.get_path("stdlib")) if library is None else library
    found: dict[str, Text] = {}
    for area, modules in sorted(areas.items()):
        for module in modules.split():
            for path in sources(library, module):
                for name, text in documented(path, library):
                    if len(words(text)) >= SHORTEST:
                        found.setdefault(text, Text(area, name, text))
    if not found:
        raise click.UsageError(f"found no source files of the standard library in {library}.")
    return list(found.values())


def sources(library: Path, module: str) -> list[Path]:
    """Return the source files of a module or a package, without its tests."""
    files = [library / f"{module}.py", *sorted((library / module).rglob("*.py"))]
    return [p for p in files if p.is_file() and not {"test", "tests"} & set(p.parts)]


def documented(path: Path, library: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of all that has one in a file, in order."""
    module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                own = f"{name}.{child.name}"
                if text := ast.get_docstring(child):
                    yield own, " ".join(text.split())
                yield from visit(child, own)

    yield from visit(ast.parse(path.read_bytes()), module)


def dbpedia(path: Path) -> list[Text]:
    """Read a csv of DBpedia's classes: a number from 1 on, a title, an abstract, and no header.

    Where a ``classes.txt`` stands beside it, with a name a line, classes have these names.
    """
    beside = path.with_name("classes.txt")
    names = beside.read_text(encoding="utf-8").split() if beside.exists() else []
    texts = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in (reader := csv.reader(file)):
            if len(row) != 3 or not row[0].isdigit() or int(row[0]) < 1:
                raise click.UsageError(
                    f"{path}, line {reader.line_num}: expected class, title, abstract, with the "
                    f"class a number from 1 on; found {row!r:.80}."
                )
            number = int(row[0])
            label = names[number - 1] if number <= len(names) else f"class {number}"
            texts.append(Text(label, row[1].strip(), " ".join(row[2].split())))
    return texts


def words(text: str) -> list[str]:
    """Return a text's words, in lower case."""
    return WORD.findall(text.lower())


def vocabulary(texts: Iterable[Text], size: int) -> dict[str, int]:
    """Return the commonest words with numbers from 2 on; 0 is padding, 1 any other word."""
    counts = Counter(word for text in texts for word in words(text.text))
    common = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    return {word: n for n, word in enumerate(common, start=2)}
