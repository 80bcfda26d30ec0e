"""Pictures of examples inside the page: PNG as text, small enough together."""

from __future__ import annotations

import base64
import io

from PIL import Image

from replay.showing import Picture

_SIDES = (160, 112, 80, 56, 40, 28)  # pixels of a picture's longer side, the first that fits
_BUDGET = 2_500_000  # characters of all pictures of a page


def addresses(pictures: list[Picture], budget: int = _BUDGET) -> list[str]:
    """Return pictures as addresses that hold them.

    All are made smaller, alike, until they fit into the budget together.
    """
    found: list[str] = []
    for side in _SIDES:
        found = [_address(picture, side) for picture in pictures]
        if sum(map(len, found)) <= budget:
            break
    return found


def _address(picture: Picture, side: int) -> str:
    image = Image.fromarray(picture)
    if max(image.size) > side:
        image.thumbnail((side, side))
    target = io.BytesIO()
    image.save(target, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()
