"""Photographs with known depth and pose, and the pairs of them that overlap.

`tiepoint.training.data.posed_datasets` lists the `View` objects of a scene without decoding anything; `overlap_matrix`
says which of them see the same surfaces, `PosedPool` draws training pairs from it, and `View.read` decodes.

Calibrations refer to pixels as the file stores them, so EXIF orientation is **not** applied here.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...errors import InputError
from ...io.decoding import read_header
from ...io.files import atomic, open_file
from ...io.images import read_stored
from .depth_maps import Matrix, read_depth, scale_intrinsics

# Grids for `overlap_matrix`: surfaces are compared at 64 x 64 places of each view, and asked for at every
# fourth.
_GRID = 64
_STEP = 4
_SAME_SURFACE = 0.1  # relative difference of depth; generous, since a cell of the grid covers a slope


@dataclass(frozen=True, eq=False)
class View:
    """A photograph with its camera and a depth map. World-to-camera: ``x_cam = R x_world + t``.

    Attributes
    ----------
    image, depth : Path
        Files; for depth see `read_depth`.
    K : float64 array (3, 3)
        Intrinsics of the image as stored; (0, 0) is the centre of the top-left pixel.
    R, t : float64 arrays (3, 3), (3,)
    K_depth : float64 array (3, 3) or None
        Intrinsics of the depth map where it has another field of view than the image, from the same centre.
        None: it shows what the image shows, at any resolution.
    depth_unit : float
        Length, in the unit of ``t``, of one step of an integer depth map.
    """

    image: Path
    depth: Path
    K: Matrix
    R: Matrix
    t: Matrix
    K_depth: Matrix | None = None
    depth_unit: float = 1.0

    def read(self, long_side: int | None = None) -> PosedImage:
        """Decode the photograph and its depth, both at one size, with the intrinsics of that size.

        Depth is sampled, never interpolated: between two surfaces there is none.

        Parameters
        ----------
        long_side : int, optional
            Shrink so that the longer side has at most this many pixels.

        Raises
        ------
        InputError
            A file is missing or damaged.
        """
        picture = PIL.Image.fromarray(read_stored(self.image))
        stored = picture.size
        if long_side is not None and max(stored) > long_side:
            factor = long_side / max(stored)
            small = (max(1, round(stored[0] * factor)), max(1, round(stored[1] * factor)))
            picture = picture.resize(small, PIL.Image.Resampling.LANCZOS)
        width, height = picture.size
        K = scale_intrinsics(self.K, width / stored[0], height / stored[1])
        source, K_source = self.read_depth(stored)
        columns, in_x = _nearest(np.arange(width), K[0], K_source[0], 0, source.shape[1])
        rows, in_y = _nearest(np.arange(height), K[1], K_source[1], 1, source.shape[0])
        depth = source[rows[:, None], columns] * (in_y[:, None] & in_x)
        return PosedImage(np.asarray(picture), depth, K)

    def read_depth(self, stored: tuple[int, int]) -> tuple[NDArray[np.float32], Matrix]:
        """Return the depth map at its own size and its intrinsics; ``stored`` is the image's size."""
        depth = read_depth(self.depth, self.depth_unit)
        if self.K_depth is not None:
            return depth, self.K_depth
        height, width = depth.shape
        if abs(width * stored[1] - height * stored[0]) > 2 * max(stored):  # more than rounding
            raise InputError(
                f"{self.depth}: a depth map of {width}x{height} cannot belong to the image {self.image} of "
                f"{stored[0]}x{stored[1]}, which has other proportions"
            )
        return depth, scale_intrinsics(self.K, width / stored[0], height / stored[1])


@dataclass(frozen=True, eq=False)
class PosedImage:
    """A decoded `View`.

    Attributes
    ----------
    pixels : uint8 array (H, W, 3)
        RGB.
    depth : float32 array (H, W)
        z in the camera's frame, in the unit of the view's ``t``; 0 where nothing was measured.
    K : float64 array (3, 3)
    """

    pixels: NDArray[np.uint8]
    depth: NDArray[np.float32]
    K: Matrix


@dataclass(frozen=True, eq=False)
class PosedPair:
    """Two views of one scene."""

    view0: View
    view1: View

    @property
    def R(self) -> Matrix:
        """Rotation of the relative pose, ``X1 = R X0 + t``."""
        return self.view1.R @ self.view0.R.T

    @property
    def t(self) -> Matrix:
        """Translation of the relative pose, ``X1 = R X0 + t``."""
        return self.view1.t - self.R @ self.view0.t


def overlap_matrix(views: Sequence[View]) -> NDArray[np.float32]:
    """Return for all pairs of views which fraction of its measured surface one shows of the other.

    Points of view i are carried into view j and count as seen where the depth there agrees within 10 %; what
    is occluded or outside is not seen. Exact to a few hundredths, since 256 points a view are asked for.
    Reads every depth map once.

    Parameters
    ----------
    views : sequence of V views in one world frame

    Returns
    -------
    float32 array (V, V)
        Symmetric: the smaller of both directions. 0 for views without any depth.
    """
    count = len(views)
    if count == 0:
        return np.zeros((0, 0), np.float32)
    coarse = np.zeros((count, _GRID, _GRID), np.float32)
    # Intrinsics in cells of the grid, so that all views are alike; cell (0, 0) is centred at (0, 0).
    intrinsics = np.empty((count, 3, 3))
    for i, view in enumerate(views):
        depth, K = view.read_depth(stored_size(view.image))
        height, width = depth.shape
        centres = (np.arange(_GRID) + 0.5) / _GRID
        rows, columns = (centres * height).astype(int), (centres * width).astype(int)
        coarse[i] = depth[rows[:, None], columns]
        intrinsics[i] = scale_intrinsics(K, _GRID / width, _GRID / height)
    R, t = np.array([v.R for v in views]), np.array([v.t for v in views])

    asked = np.arange(_STEP // 2, _GRID, _STEP)
    x, y = (a.ravel() for a in np.meshgrid(asked, asked))
    seen = np.zeros((count, count), np.float32)
    for i in range(count):
        z = coarse[i, y, x]
        measured = z > 0
        if not measured.any():
            continue
        rays = np.stack([x, y, np.ones_like(x)], -1)[measured] @ np.linalg.inv(intrinsics[i]).T
        world = (rays * z[measured, None] - t[i]) @ R[i]
        camera = world @ R.transpose(0, 2, 1) + t[:, None]  # (V, points, 3)
        front = camera[..., 2] > 0
        safe = np.where(front[..., None], camera, 1.0)
        pixels = np.round((safe @ intrinsics.transpose(0, 2, 1))[..., :2] / safe[..., 2:])
        inside = front & ((pixels >= 0) & (pixels < _GRID)).all(-1)
        column, row = np.moveaxis(np.where(inside[..., None], pixels, 0).astype(int), -1, 0)
        there = coarse[np.arange(count)[:, None], row, column]
        agrees = (there > 0) & (np.abs(safe[..., 2] - there) <= _SAME_SURFACE * there)
        seen[i] = (inside & agrees).mean(1)
    return np.minimum(seen, seen.T)


class PosedPool:
    """All scenes below a folder, and which pairs of their views overlap as training wants it.

    Every fifth view, chosen by its name, is held out: training pairs have none of these, evaluation pairs no others.

    Parameters
    ----------
    scenes : sequence of sequences of View
        Each in one world frame.
    folder : path, optional
        Where the overlaps of each scene, which take a while to find, are kept.
    min_overlap, max_overlap : float
        Of the pairs' `overlap_matrix`; LightGlue was trained with 0.1 to 0.7 of MegaDepth.

    Raises
    ------
    InputError
        No two views overlap like that.
    """

    def __init__(
        self,
        scenes: Sequence[Sequence[View]],
        folder: Path | None = None,
        min_overlap: float = 0.1,
        max_overlap: float = 0.7,
    ) -> None:
        self.views: list[View] = [view for scene in scenes for view in scene]
        summary = "\n".join(f"{view.image} {view.R.tolist()} {view.t.tolist()}" for view in self.views)
        self.digest = hashlib.sha256(summary.encode()).hexdigest()
        kept = folder and folder / f"overlaps-{self.digest[:16]}.npz"
        if kept and kept.is_file():
            with np.load(kept) as arrays:
                overlaps = [arrays[f"arr_{i}"] for i in range(len(scenes))]
        else:
            overlaps = [overlap_matrix(scene) for scene in scenes]
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with atomic(kept) as unfinished:
                    np.savez(unfinished, *overlaps)
        held_out = np.array([zlib.crc32(view.image.name.encode()) % 5 == 0 for view in self.views], bool)
        rows, first = [], 0
        for overlap in overlaps:
            wanted = np.triu((overlap >= min_overlap) & (overlap <= max_overlap), 1)
            rows.append(np.argwhere(wanted) + first)
            first += len(overlap)
        self.pairs = np.concatenate(rows)
        sides = held_out[self.pairs].sum(1)
        self.chosen = {False: np.flatnonzero(sides == 0), True: np.flatnonzero(sides == 2)}
        if not len(self.chosen[False]):
            raise InputError(
                f"of {len(self.views)} photographs with depth and pose, no two overlap between {min_overlap:g} and "
                f"{max_overlap:g}"
            )

    def draw(self, count: int, random: np.random.Generator, held_out: bool = False) -> list[PosedPair]:
        """Draw pairs at random, in either order; training pairs where nothing could be held out."""
        numbers = self.chosen[held_out] if len(self.chosen[held_out]) else self.chosen[False]
        drawn = []
        for number, swap in zip(random.choice(numbers, count), random.random(count) < 0.5, strict=True):
            i, j = self.pairs[number][:: -1 if swap else 1]
            drawn.append(PosedPair(self.views[i], self.views[j]))
        return drawn


def _nearest(
    pixels: NDArray[np.int64], K: Matrix, K_source: Matrix, axis: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the nearest pixels of another camera at the same place, along one axis, and whether they exist.

    ``K`` and ``K_source`` are the rows of the intrinsics for that axis; without skew the axes are
    independent.
    """
    place = (pixels - K[2]) / K[axis] * K_source[axis] + K_source[2]
    index = np.floor(place + 0.5).astype(np.int64)
    return index.clip(0, size - 1), (index >= 0) & (index < size)


def stored_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image as the file stores it."""
    with open_file(path) as file:
        return read_header(file, str(path)).size
