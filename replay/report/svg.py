"""A figure as SVG that stands inside the page, in the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

_INK, _GRID = "#0b0c0d", "#0b0c0e"  # stand for the page's colours
_COLOURS = {_INK: "var(--ink)", _GRID: "var(--grid)"}
_NO_DATE = {"Date": None, "Creator": None, "Format": None, "Type": None}
_DPI = 200  # of what is an image inside


def drawn(draw: Callable[[], Figure]) -> Figure:
    """Return a figure whose ink and grid become the page's."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    settings: dict[Any, Any] = dict.fromkeys(inked, _INK) | dict.fromkeys(clear, "none")
    with mpl.rc_context({**settings, "grid.color": _GRID}):
        return draw()


def inline(figure: Figure, name: str, says: str) -> Markup:
    """Return a figure as an SVG element.

    Args:
        figure: The figure.
        name: Begins the IDs of its parts, which are the page's own then.
        says: What it shows, for those who do not see it.
    """
    target = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure.savefig(target, format="svg", metadata=_NO_DATE, dpi=_DPI)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL
    )  # that of the page holds
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    drawn_anew = dict.fromkeys(re.findall(rf'id="({name}-[a-zA-Z]+[0-9a-f]{{10}})"', text))
    for number, made in enumerate(drawn_anew):  # its names differ from one time to the next
        text = text.replace(made, f"{name}-{number}")
    for stands, colour in _COLOURS.items():
        text = text.replace(stands, colour)
    title = f'<svg role="img" aria-label="{escape(says)}"'
    return Markup(text.replace("<svg", title, 1))
