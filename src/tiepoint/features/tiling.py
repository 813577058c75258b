"""Cutting a large photograph into overlapping tiles in which every point has exactly one owner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

import torch

from ..types import Features

# Networks see the image on a grid of 8, 16 or 32 pixels. Windows that begin on multiples of 32 put that grid
# where it lies in the whole image.
_GRID = 32


@dataclass(frozen=True)
class Tile:
    """One tile of an image.

    Attributes
    ----------
    window : (slice, slice)
        Rows and columns to cut out: the core and, where the image goes on, the overlap around it.
    x, y : (float, float)
        The core, half-open, in pixel coordinates of the image; it has no end where the image ends.
    """

    window: tuple[slice, slice]
    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def origin(self) -> tuple[int, int]:
        """(x, y) of the window's first pixel."""
        return self.window[1].start, self.window[0].start

    def owns(self, keypoints: torch.Tensor) -> torch.Tensor:
        """Return which keypoints (N, 2), in image coordinates, lie in the core, as a bool tensor (N,)."""
        x, y = keypoints.unbind(1)
        return (self.x[0] <= x) & (x < self.x[1]) & (self.y[0] <= y) & (y < self.y[1])


def tiles(size: tuple[int, int], side: int, overlap: int) -> Iterator[Tile]:
    """Cut an image of ``size`` (width, height) into tiles of about ``side`` pixels, row by row.

    Parameters
    ----------
    size : (int, int)
        Width and height in pixels.
    side : int
        Longest side of a window, overlap included, in pixels.
    overlap : int
        How far a window reaches beyond its core, rounded up to a multiple of 32.

    Examples
    --------
    >>> [tile.window for tile in tiles((200, 100), side=128, overlap=32)]
    [(slice(0, 100, None), slice(0, 96, None)), (slice(0, 100, None), slice(32, 160, None)), ...]
    """
    overlap = ceil(overlap / _GRID) * _GRID
    columns, rows = (list(_spans(length, side, overlap)) for length in size)
    for rows_window, y in rows:
        for columns_window, x in columns:
            yield Tile((rows_window, columns_window), x, y)


def _spans(length: int, side: int, overlap: int) -> Iterator[tuple[slice, tuple[float, float]]]:
    """Cut one axis: (window, core) for each part, the cores of equal length but for rounding to the grid."""
    if length <= side:
        parts = 1
    else:
        core = max(_GRID, (side - 2 * overlap) // _GRID * _GRID)
        parts = ceil(length / core)
    core = ceil(length / parts / _GRID) * _GRID
    starts = range(0, length, core)
    for start in starts:
        end = min(start + core, length)
        window = slice(max(0, start - overlap), min(length, end + overlap))
        # Pixel i covers i - 0.5 to i + 0.5.
        yield window, (start - 0.5 if start else -inf, end - 0.5 if end < length else inf)


def concatenate(parts: Sequence[Features]) -> Features:
    """Join features of one image found by one extractor."""

    def join(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    first = parts[0]
    return replace(
        first,
        keypoints=join("keypoints"),
        scores=join("scores"),
        descriptors=join("descriptors"),
        scales=None if first.scales is None else join("scales"),
        orientations=None if first.orientations is None else join("orientations"),
        covariances=None if first.covariances is None else join("covariances"),
    )
