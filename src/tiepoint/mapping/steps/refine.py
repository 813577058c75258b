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
FURTHEST = 4.0  # pixels that a keypoint may move
LEAST_CORRELATION = 0.8  # of the patch with its reference
LARGEST_AREA = 9.0  # of a patch in one image, compared with the other: beyond, one of them is a blur

CHUNK = 2000  # observations at a time, some 50 MB

Matrix = NDArray[np.float64]
Patches = NDArray[np.float32]

_grid = np.arange(-HALF, HALF + 1, dtype=np.float64)
OFFSETS: Matrix = np.stack(np.meshgrid(_grid, _grid), axis=-1).reshape(-1, 2)
# The middle counts most: that is the keypoint, and the surface may bend beside it.
WEIGHTS: Patches = np.exp(-(OFFSETS**2).sum(axis=1) / (2 * (0.6 * HALF) ** 2)).astype(np.float32)
WEIGHTS /= WEIGHTS.sum()


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
            self.patches[rows[some]] = _normalise(_sample(picture, pixels[some, None] + OFFSETS)[0])[0]

    def align(self, model: pycolmap.Reconstruction, image: pycolmap.Image, picture: torch.Tensor) -> int:
        """Move the other observations in one image, see `_with_slopes`; return how many could be aligned."""
        seen = [point for point in image.points2D if point.has_point3D()]
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
            aligned, good = _align(picture, pixels[part], OFFSETS @ warps[part], self.patches[rows[part]])
            for number in np.flatnonzero(good):
                seen[part[number]].xy = aligned[number]
            moved += int(good.sum())
        return moved


def _align(
    picture: torch.Tensor, pixels: Matrix, offsets: Matrix, patches: Patches
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
    offsets : array (N, P, 2)
        Where the patches' pixels lie around it.
    patches : float32 array (N, P)
        Normalised.

    Returns
    -------
    pixels : array (N, 2)
    good : bool array (N,)
        Whether it converged nearby, to something at least as similar as it was at first.
    """
    place, step = pixels.copy(), np.zeros_like(pixels)
    first = correlation = np.zeros(len(pixels), np.float32)
    with np.errstate(all="ignore"):  # patches that leave the picture become nan, and are not good
        for number in range(STEPS):
            values, x, y = _sample(picture, place[:, None] + offsets)
            seen, contrast = _normalise(values)
            correlation = (WEIGHTS * seen * patches).sum(axis=1)
            first = correlation if number == 0 else first
            # Derivatives of the normalised patch: without the part that only changes its mean or contrast.
            x, y = ((d - (WEIGHTS * d).sum(axis=1, keepdims=True)) / contrast for d in (x, y))
            x, y = (d - (WEIGHTS * d * seen).sum(axis=1, keepdims=True) * seen for d in (x, y))
            xx, xy, yy, xr, yr = (
                (WEIGHTS * a * b).sum(axis=1)
                for a, b in ((x, x), (x, y), (y, y), (x, patches - seen), (y, patches - seen))
            )
            step = np.stack([yy * xr - xy * yr, xx * yr - xy * xr], axis=1) / (xx * yy - xy * xy)[:, None]
            place = place + step.clip(-1, 1)
        still = np.linalg.norm(step, axis=1) < 0.02
        near = np.linalg.norm(place - pixels, axis=1) < FURTHEST
    return place, still & near & (correlation > LEAST_CORRELATION) & (correlation >= first - 1e-4)


def _sample(layers: torch.Tensor, pixels: Matrix) -> Patches:
    """Return layers (C, H, W) at pixels (N, P, 2), counted from the corner as COLMAP does: (C, N, P), nan outside."""
    last = np.array([layers.shape[2] - 1, layers.shape[1] - 1])
    at = from_colmap(pixels)
    inside = np.asarray(((at >= 0) & (at <= last)).all(axis=-1))
    grid = np.where(inside[..., None], 2 * at / last - 1, 0).astype(np.float32)  # -1 and 1 are the outermost pixels
    values = F.grid_sample(layers[None], torch.from_numpy(grid[None]), align_corners=True)[0].numpy()
    return np.where(inside, values, np.float32(np.nan))


def _normalise(patches: Patches) -> tuple[Patches, Patches]:
    """Return patches of weighted mean 0 and weighted norm 1, and the norms (N, 1) they had."""
    patches = patches - (WEIGHTS * patches).sum(axis=1, keepdims=True)
    contrast = np.maximum(np.sqrt((WEIGHTS * patches**2).sum(axis=1, keepdims=True)), np.float32(1e-3))
    return patches / contrast, contrast


def _chunks(n: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
