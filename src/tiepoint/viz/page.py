"""One self-contained HTML page to explore the matches of a pair; it opens offline, from the disk."""

from __future__ import annotations

import base64
import io
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..io.files import atomic, check_output
from ..io.html import fill_template
from ..io.images import resize
from ..types import Image, Matches
from .pictures import INLIER, OUTLIER

EMBEDDED_LONG_SIDE = 1600  # pixels of each embedded photograph: sharp on a large screen, a few hundred kilobytes


def write_page(
    image0: Image,
    image1: Image,
    matches: Matches,
    path: str | os.PathLike[str],
    *,
    inliers: NDArray[np.bool_] | None = None,
    description: str = "",
    verdict: str = "",
) -> None:
    """Write an interactive page: zoom into both photographs together, follow a match, slide the score threshold.

    Parameters
    ----------
    image0, image1 : Image
        The photographs; embedded as JPEG of at most 1600 pixels.
    matches : Matches
        What to show; coordinates on the page are those of the original photographs.
    path : path
        Ending in .html; written atomically.
    inliers : bool array (K,) or None
        Which matches agree with the estimated geometry.
    description : str
        One line under the title, e.g. how the matches were made.
    verdict : str
        Whether the photographs show the same thing, in words.

    Raises
    ------
    ArgumentError
        The name does not end in .html, or the folder does not exist.
    """
    target = check_output(path, (".html",), inputs=[image0.name, image1.name])
    rows = np.column_stack([matches.points0, matches.points1, matches.scores]).astype(np.float64)
    data = {
        "images": [_embed(image0), _embed(image1)],
        "matches": [[round(value, 3) for value in row] for row in rows.tolist()],
        "inliers": None if inliers is None else [int(value) for value in inliers],
        "colours": {"inlier": INLIER, "outlier": OUTLIER},
    }
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page = fill_template(template, data, description=description, verdict=verdict)
    with atomic(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _embed(image: Image) -> dict[str, Any]:
    """Return one photograph as the page's script wants it; width and height are the original's."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(resize(image.pixels, EMBEDDED_LONG_SIDE)).save(buffer, "JPEG", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = image.size
    name = Path(image.name).name
    return {"name": name, "width": width, "height": height, "source": f"data:image/jpeg;base64,{encoded}"}
