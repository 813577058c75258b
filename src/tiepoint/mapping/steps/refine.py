"""Sub-pixel refinement of keypoints: the patches of each track are aligned to one of them.

Detectors find a point in each photograph independently, with errors of half a pixel, or of one or two where they worked
on a shrunken photograph. A model predicts how a small patch around a point turns and scales from one photograph to the
other, so only a shift is left to estimate, by comparing grey values (Lucas and Kanade, IJCAI 1981).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...errors import InputError
from ...geometry.colmap import from_colmap
from ...io.images import read_image
from ..models import PosedCamera, registered
from ..progress import Progress, Report, silent

if TYPE_CHECKING:
    import pycolmap

HALF = 6  # pixels from the middle of a patch to its edge
BLUR = 0.7  # standard deviation in pixels, so that sampling between pixels does not alias
STEPS = 8  # of Gauss and Newton; they converge in four or five
STILL = 0.02  # pixels of a step after which a patch stays where it is
FURTHEST = 4.0  # pixels that a keypoint may move
LEAST_CORRELATION = 0.8  # of the patch with its reference
LARGEST_AREA = 9.0  # of a patch in one image, compared with the other: beyond, one of them is a blur

CHUNK = 2000  # observations at a time, some 50 MB

Matrix = NDArray[np.float64]
Patches = NDArray[np.float32]

_grid = np.arange(-HALF, HALF + 1, dtype=np.float64)
OFFSETS: Matrix = np.stack(np.meshgrid(_grid, _grid), axis=-1).reshape(-1, 2)
CORNERS = [0, 2 * HALF, -1 - 2 * HALF, -1]  # of the offsets
# The middle counts most: that is the keypoint, and the surface may bend beside it. With these roots every weighted sum
# over a patch is a dot product.
ROOTS: Patches = np.exp(-(OFFSETS**2).sum(axis=1) / (4 * (0.6 * HALF) ** 2)).astype(np.float32)
ROOTS /= np.linalg.norm(ROOTS)


def refine_keypoints(
    model: pycolmap.Reconstruction,
    images: str | os.PathLike[str],
    bands: Sequence[int] | None = None,
    report: Report = silent,
) -> int:
    """Move the observations of each point to where the photographs agree best.

    Of each track the observation from the middle of all directions stays as it is, and the others are aligned to it.
    Those that look too different, or would move by more than 4 pixels, stay too. Poses and points are left for a
    bundle adjustment to improve; the database keeps the keypoints as they were detected.

    Parameters
    ----------
    model : pycolmap.Reconstruction
        Its ``points2D`` change.
    images : path
        The folder of the photographs.
    bands : one or three ints, optional
        Which bands of them to use, see `tiepoint.read_image`.
    report : callable
        Gets a `Progress` after each photograph; each is read twice.

    Returns
    -------
    int
        Number of observations that were aligned.

    Warns
    -----
    UserWarning
        A photograph cannot be read, or has another size; its observations stay.

    Notes
    -----
    The surface around a point is taken for a small plane that faces the cameras on average. One photograph is in memory
    at a time, and 0.8 kB for each point.

    References
    ----------
    Lindenberger et al., Pixel-Perfect Structure-from-Motion, ICCV 2021, do this with learned feature maps.
    """
    references, moved, usable = _References(model), 0, []
    total = 2 * model.num_reg_images()
    for image in registered(model):
        if (picture := _grey(model, image, Path(images), bands)) is not None:
            references.sample(model, image, torch.from_numpy(picture[None]))
            usable.append(image)
        report(Progress("refining keypoints", len(usable), total))
    for done, image in enumerate(usable, start=1):
        if (picture := _grey(model, image, Path(images), bands)) is not None:
            moved += references.align(model, image, _with_slopes(picture))
        report(Progress("refining keypoints", total - len(usable) + done, total))
    return moved


def _grey(
    model: pycolmap.Reconstruction, image: pycolmap.Image, folder: Path, bands: Sequence[int] | None
) -> Patches | None:
    """Read a photograph as slightly blurred grey values (H, W); None, with a warning, if it cannot be used."""
    camera = model.cameras[image.camera_id]
    try:
        view = read_image(folder / image.name, bands=bands)
        if view.size != (camera.width, camera.height):
            raise InputError(f"{view.name}: is not {camera.width}x{camera.height} pixels as in the model")
    except InputError as error:
        warnings.warn(f"no keypoints are refined in this photograph: {error}", stacklevel=3)
        return None
    grey = cv2.cvtColor(view.pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), BLUR), np.float32)


def _with_slopes(picture: Patches) -> torch.Tensor:
    """Return a picture (H, W) and its derivatives along x and y: (3, H, W)."""
    slopes = [cv2.Sobel(picture, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1))]
    return torch.from_numpy(np.stack([picture, *slopes]))


class _References:
    """For each point of a model: the observation that the others are aligned to, and its patch.

    ``rows`` maps a point's id to its row in the arrays. ``image`` and ``keypoint`` (N,) say which observation it is.
    The patch's pixel at offset (u, v) shows the world at ``middle + u * right + v * down``, each (N, 3), on the plane
    with ``normal`` (N, 3). ``patches`` (N, P) are normalised, and nan where there is no picture.
    """

    def __init__(self, model: pycolmap.Reconstruction) -> None:
        self.rows = {point_id: row for row, point_id in enumerate(sorted(model.point3D_ids()))}
        n = len(self.rows)
        self.image, self.keypoint = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.middle, self.normal, self.right, self.down = (np.zeros((n, 3)) for _ in range(4))
        self.patches = np.full((n, len(OFFSETS)), np.nan, np.float32)
        centres = {image.image_id: image.projection_center() for image in registered(model)}
        for point_id, row in self.rows.items():
            point = model.points3D[point_id]
            track = point.track.elements
            rays = np.array([centres[element.image_id] for element in track]) - point.xyz
            rays /= np.linalg.norm(rays, axis=1, keepdims=True)
            mean = rays.sum(axis=0)
            chosen = track[int(np.argmax(rays @ mean))]
            self.image[row], self.keypoint[row] = chosen.image_id, chosen.point2D_idx
            self.middle[row], self.normal[row] = point.xyz, mean

    def sample(self, model: pycolmap.Reconstruction, image: pycolmap.Image, picture: torch.Tensor) -> None:
        """Take the patches of the observations chosen in one image, whose picture is (1, H, W)."""
        rows = np.flatnonzero(self.image == image.image_id)
        pixels = np.array([image.points2D[k].xy for k in self.keypoint[rows].tolist()]).reshape(-1, 2)
        posed = PosedCamera.of(model, image)

        def on_plane(shift: tuple[float, float]) -> Matrix:
            """Return where the rays of shifted pixels meet the patches' planes."""
            directions, normal = posed.rays(pixels + shift), self.normal[rows]
            reach = ((self.middle[rows] - posed.centre) * normal).sum(axis=1) / (directions * normal).sum(axis=1)
            return posed.centre + directions * reach[:, None]

        depth = (self.middle[rows] - posed.centre) @ posed.R[2]
        # The keypoint's ray misses the point by a little.
        self.middle[rows] = posed.centre + posed.rays(pixels) * depth[:, None]
        self.right[rows] = (on_plane((1, 0)) - on_plane((-1, 0))) / 2
        self.down[rows] = (on_plane((0, 1)) - on_plane((0, -1))) / 2
        for some in _chunks(len(rows)):
            offsets = np.broadcast_to(OFFSETS.astype(np.float32), (len(some), *OFFSETS.shape))
            self.patches[rows[some]] = _normalise(_sample(picture, pixels[some], offsets)[0])[0]

    def align(self, model: pycolmap.Reconstruction, image: pycolmap.Image, picture: torch.Tensor) -> int:
        """Move the other observations in one image, see `_with_slopes`; return how many could be aligned."""
        points = image.points2D  # get_observation_points2D gives copies
        seen = [points[k] for k in image.get_observation_point2D_idxs()]
        rows = np.array([self.rows[point.point3D_id] for point in seen], np.int64)
        pixels = np.array([point.xy for point in seen]).reshape(-1, 2)
        posed, middle = PosedCamera.of(model, image), self.middle[rows]
        origin = posed.project(middle)
        # How the patch lies in this image, to first order: rows are where its axes go.
        warps = np.stack([posed.project(middle + axis[rows]) - origin for axis in (self.right, self.down)], axis=1)
        area = np.abs(np.linalg.det(np.nan_to_num(warps)))
        usable = (self.image[rows] != image.image_id) & (area > 1 / LARGEST_AREA) & (area < LARGEST_AREA)
        chosen = np.flatnonzero(usable & np.isfinite(self.patches[rows, 0]))
        moved = 0
        for some in _chunks(len(chosen)):
            part = chosen[some]
            offsets = (OFFSETS @ warps[part]).astype(np.float32)
            aligned, good = _align(picture, pixels[part], offsets, self.patches[rows[part]])
            for number in np.flatnonzero(good):
                seen[part[number]].xy = aligned[number]
            moved += int(good.sum())
        return moved


def _align(
    picture: torch.Tensor, pixels: Matrix, offsets: Patches, patches: Patches
) -> tuple[Matrix, NDArray[np.bool_]]:
    """Find the shift under which a picture looks like the patches, by Gauss and Newton.

    What is minimised is the difference of patches whose mean and contrast are normalised, i.e. correlation is
    maximised.

    Parameters
    ----------
    picture : tensor (3, H, W)
        From `_with_slopes`.
    pixels : array (N, 2)
        Where to begin.
    offsets : float32 array (N, P, 2)
        Where the patches' pixels lie around it.
    patches : float32 array (N, P)
        Normalised.

    Returns
    -------
    pixels : array (N, 2)
    good : bool array (N,)
        Whether it converged nearby, to something at least as similar as it was at first.
    """
    place = pixels.copy()
    first, correlation = (np.full(len(pixels), np.nan, np.float32) for _ in range(2))
    still = np.zeros(len(pixels), bool)
    moving = np.arange(len(pixels))
    with np.errstate(all="ignore"):  # patches that leave the picture become nan, and are not good
        for number in range(STEPS):
            values, x, y = _sample(picture, place[moving], offsets[moving])
            seen, contrast = _normalise(values)
            wanted = patches[moving]
            correlation[moving] = _dot(seen, wanted)
            if number == 0:
                first[:] = correlation
            # Derivatives of the normalised patch: without the part that only changes its mean or contrast.
            x, y = (_across(seen, _across(ROOTS, d * ROOTS)) / contrast for d in (x, y))
            xx, xy, yy, xr, yr = (
                _dot(a, b)[:, None] for a, b in ((x, x), (x, y), (y, y), (x, wanted - seen), (y, wanted - seen))
            )
            step = np.hstack([yy * xr - xy * yr, xx * yr - xy * xr]) / (xx * yy - xy * xy)
            place[moving] += step.clip(-1, 1)
            far = np.linalg.norm(step, axis=1) >= STILL
            still[moving] = np.isfinite(step).all(axis=1) & ~far
            moving = moving[far]
        near = np.linalg.norm(place - pixels, axis=1) < FURTHEST
    return place, still & near & (correlation > LEAST_CORRELATION) & (correlation >= first - 1e-4)


def _sample(layers: torch.Tensor, pixels: Matrix, offsets: Patches) -> Patches:
    """Return layers (C, H, W) at offsets (N, P, 2) from pixels (N, 2), counted from the corner as COLMAP does.

    Returns
    -------
    float32 array (C, N, P)
        All of a patch is nan that leaves the picture.
    """
    last = np.array([layers.shape[2] - 1, layers.shape[1] - 1])
    at = from_colmap(pixels)
    corners = at[:, None] + offsets[:, CORNERS]
    grid = (2 * at / last - 1).astype(np.float32)[:, None] + offsets * (2 / last).astype(np.float32)
    values = F.grid_sample(layers[None], torch.from_numpy(grid[None]), align_corners=True)[0].numpy()
    values[:, ~((corners >= 0) & (corners <= last)).all(axis=(1, 2))] = np.nan
    return values


def _normalise(patches: Patches) -> tuple[Patches, Patches]:
    """Return patches times `ROOTS`, with weighted mean 0 and norm 1, and the norms (N, 1) that they had."""
    patches = _across(ROOTS, patches * ROOTS)
    contrast = np.sqrt(_dot(patches, patches))[:, None].clip(1e-3)
    return patches / contrast, contrast


def _dot(a: Patches, b: Patches) -> Patches:
    return np.asarray(np.einsum("np,np->n", a, b))


def _across(unit: Patches, patches: Patches) -> Patches:
    """Return the part of patches (N, P) that is orthogonal to unit vectors, one (P,) or one for each (N, P)."""
    return patches - np.einsum("...p,...p->...", patches, unit)[:, None] * unit


def _chunks(n: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
