"""Many small pictures on one sheet, with their names: the frames that were taken of a video, say."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from ..io.files import atomic, check_output

SUFFIXES = (".jpg", ".jpeg", ".png")
MOST = 400  # pictures on a sheet
SIDE = 160  # pixels, the long side of each
LINE = 14  # pixels, the height of a name
GAP = 4
GROUND, INK = (24, 26, 32), (225, 225, 225)


def contact_sheet(
    pictures: Sequence[tuple[str, NDArray[np.uint8]]], path: str | os.PathLike[str] | None = None
) -> PIL.Image.Image:
    """Draw small pictures in rows, each with its name below.

    Parameters
    ----------
    pictures : sequence of (str, uint8 array (H, W, 3))
        In order; of more than 400 so many are shown, evenly chosen, and a line at the bottom says so.
    path : path, optional
        Write the sheet to this .jpg or .png file.

    Returns
    -------
    PIL.Image.Image
        About as wide as it is high.

    Raises
    ------
    ArgumentError
        The name of the file ends otherwise, or there is no such folder.

    Examples
    --------
    >>> contact_sheet([(f"frame {n}", np.zeros((90, 160, 3), np.uint8)) for n in range(4)]).size
    (332, 220)
    """
    target = None if path is None else check_output(path, SUFFIXES)
    shown = [pictures[i] for i in np.linspace(0, len(pictures) - 1, min(len(pictures), MOST)).astype(int)]
    small = []
    for name, pixels in shown:
        image = PIL.Image.fromarray(pixels)
        image.thumbnail((SIDE, SIDE))
        small.append((name, image))
    wide = max((image.width for _, image in small), default=SIDE)
    high = max((image.height for _, image in small), default=SIDE) + LINE
    columns = max(1, math.ceil(math.sqrt(len(small) * high / wide)))
    rows = math.ceil(len(small) / columns)
    left_out = len(pictures) - len(small)
    size = columns * (wide + GAP) + GAP, rows * (high + GAP) + GAP + (LINE if left_out else 0)
    sheet = PIL.Image.new("RGB", size, GROUND)
    pen = PIL.ImageDraw.Draw(sheet)
    for number, (name, image) in enumerate(small):
        x, y = GAP + number % columns * (wide + GAP), GAP + number // columns * (high + GAP)
        sheet.paste(image, (x, y))
        pen.text((x, y + image.height + 1), _fitting(pen, name, wide), fill=INK)
    if left_out:
        pen.text((GAP, size[1] - LINE), f"{len(small)} of {len(pictures)}", fill=INK)
    if target is not None:
        with atomic(target) as temporary:
            sheet.save(temporary, "PNG" if target.suffix.lower() == ".png" else "JPEG")
    return sheet


def _fitting(pen: PIL.ImageDraw.ImageDraw, name: str, width: int) -> str:
    """Return the end of a name, as much of it as is not wider."""
    while name and pen.textlength(name) > width:
        name = name[1:]
    return name


__all__ = ["contact_sheet"]
