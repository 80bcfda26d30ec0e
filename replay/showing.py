"""What people see: of an example its text and pictures, in a notebook some named lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_MOST = 4096  # pixels along a side that a picture may have; larger ones are thinned out


@dataclass(frozen=True)
class Shown:
    """An example as people see it.

    Attributes:
        text: Its text or label; empty if there is none.
        pictures: Its pictures, uint8 ``(h, w, 3)`` or ``(h, w, 4)``.
    """

    text: str = ""
    pictures: tuple[Picture, ...] = ()


def shown_of(given: Any) -> Shown:
    """Return what ``Task.show`` gave as text and pictures.

    A string is text; an array or tensor of two or three dimensions is a picture, as is a PIL
    image; a tuple or list holds several of them, such as a picture and its label.
    """
    texts: list[str] = []
    pictures: list[Picture] = []
    for piece in _flat(given):
        picture = picture_of(piece)
        if picture is None:
            texts.append(legible(piece))
        else:
            pictures.append(picture)
    return Shown(" · ".join(texts), tuple(pictures))


def facts_html(title: str, rows: Mapping[str, object]) -> str:
    """Return a title with named lines below it; empty ones are left out."""
    lines = (
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(str(text)[:300])}</td></tr>'
        for name, text in rows.items()
        if text
    )
    return f"<p><b>{escape(title)}</b></p><table>{''.join(lines)}</table>"


def legible(text: object) -> str:
    r"""Return text without what steers a terminal or is no character of a page.

    >>> legible("a\x1b[1mb")
    'a�[1mb'
    """
    return _STEERS.sub("�", str(text))


def picture_of(given: Any) -> Picture | None:
    """Return an array, tensor or PIL image as pixels; None of anything else.

    Channels may come first or last. Real numbers from 0 to 1 are brightness; other ranges are
    stretched from the smallest to the largest, and what is not finite is black.

    >>> picture_of(np.array([[0.0, 1.0]]))[..., 0].tolist()
    [[0, 255]]
    """
    if hasattr(given, "convert") and hasattr(given, "size"):  # PIL, which need not be there
        return _thinned(np.asarray(given.convert("RGBA"), dtype=np.uint8))
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = (given.double() if given.is_floating_point() else given).numpy()
    if not isinstance(given, np.ndarray) or given.ndim not in (2, 3) or 0 in given.shape:
        return None
    if given.dtype.kind not in "biuf":
        return None
    return _thinned(_pixels(_channels_last(given)))


def _flat(given: Any) -> Iterator[Any]:
    if isinstance(given, (tuple, list)):
        for one in given:
            yield from _flat(one)
    elif given is not None:
        yield given


def _channels_last(given: NDArray[Any]) -> NDArray[Any]:
    """Return ``(h, w, c)`` with 1, 3 or 4 channels; of other numbers, the first."""
    if given.ndim == 2:
        return given[..., None]
    if given.shape[-1] not in (1, 3, 4) and given.shape[0] in (1, 3, 4):
        given = np.moveaxis(given, 0, -1)
    return given if given.shape[-1] in (1, 3, 4) else given[..., :1]


def _pixels(given: NDArray[Any]) -> Picture:
    if given.dtype == np.uint8:
        found = given
    else:
        values = np.nan_to_num(given.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
        if given.dtype.kind == "f" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        found = np.round(255 * (values - low) / ((high - low) or 1)).astype(np.uint8)
    return np.repeat(found, 3, axis=-1) if found.shape[-1] == 1 else found


def _thinned(picture: Picture) -> Picture:
    step = -(-max(picture.shape[:2]) // _MOST)
    return picture[::step, ::step]
