"""Reading photographs: a file, an array or a stream -> `Image`.

Everything that can be wrong with an input is found here and raised as one `InputError` naming the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from .errors import InputError
from .types import Image

ImageSource = str | os.PathLike[str] | IO[bytes] | NDArray[Any] | Image


def read_image(source: ImageSource, mask: ImageSource | None = None) -> Image:
    """Read one image as 8-bit RGB with its EXIF orientation applied."""
    if isinstance(source, Image):
        return source
    if isinstance(source, np.ndarray):
        return Image(source)
    try:
        picture = PIL.ImageOps.exif_transpose(PIL.Image.open(source)).convert("RGB")
    except Exception as error:
        raise InputError(f"{source}: {error}") from error
    return Image(np.asarray(picture), None, str(Path(str(source))))


def resize(pixels: NDArray[np.uint8], long_side: int, enlarge: bool = False) -> NDArray[np.uint8]:
    """Resize so that the longer side is ``long_side`` pixels; smaller images stay unless ``enlarge``."""
    height, width = pixels.shape[:2]
    factor = long_side / max(height, width)
    if factor == 1 or (factor > 1 and not enlarge):
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a mask (H, W) to ``size`` (width, height): each pixel takes the value under its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for old, new in zip(mask.shape, size[::-1], strict=True)
    )
    return mask[rows[:, None], columns]
