"""Views of a photograph: warped by a homography, extracted, and mapped back to pixels of the photograph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..features import Extractor, ExtractorOptions
from ..features.base import allowed, working_size
from ..geometry import transform
from ..io.images import resize
from ..types import Features, Image

TILTS = {2.0: 4, 4.0: 8}  # tilt -> number of directions in half a turn
OUTSIDE = 0.02  # of the points, at each edge: they do not count for what a zoom shows
AROUND = 0.15  # of the extent of the others: what a zoom shows beyond them, on each side
FINER = 2.0  # pixels of a zoom, along each axis, for one of the photograph
MARGIN = 5  # working pixels along the edge of a warped photograph that hold no keypoints
_OPENCV_SIDE = 16_384  # cv2.warpPerspective takes sides below 2^15
_FINEST = 8  # samples a pixel, along each axis, at most

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """Features of a warped photograph: in its own pixels, and in pixels of the photograph (None: not warped)."""

    features: Features
    original: Features | None = None


def look(extractor: Extractor, image: Image, warp: Array, size: tuple[int, int]) -> View:
    """Extract the photograph warped by ``warp`` (3, 3), from its pixels to those of a picture of ``size``."""
    seen = extractor(warped(image, warp, size))
    back = np.linalg.inv(warp)
    points = transform(back, seen.keypoints.cpu().numpy())
    jacobians = torch.from_numpy(slopes(back, seen.keypoints.cpu().numpy())).to(seen.keypoints)
    inside = ((points >= -0.5) & (points <= np.array(image.size) - 0.5)).all(axis=1)
    keypoints = torch.from_numpy(points).to(seen.keypoints)
    keep = torch.from_numpy(inside).to(seen.device)
    if image.mask is not None:
        keep &= allowed(torch.where(keep[:, None], keypoints, 0), image.mask)
    directions = orientations = None
    if seen.orientations is not None:
        directions = torch.stack([seen.orientations.cos(), seen.orientations.sin()], dim=1)
        directions = (jacobians @ directions[:, :, None]).squeeze(2)
        orientations = torch.atan2(directions[:, 1], directions[:, 0])
    original = replace(
        seen,
        keypoints=keypoints,
        image_size=image.size,
        scales=None if seen.scales is None else seen.scales * jacobians.det().abs().sqrt(),
        orientations=orientations,
        covariances=None if seen.covariances is None else jacobians @ seen.covariances @ jacobians.transpose(1, 2),
    )
    return View(seen.select(keep), original.select(keep))


def warped(image: Image, warp: Array, size: tuple[int, int]) -> Image:
    """Return the photograph warped; where it shows nothing, or something masked, the mask is 0.

    Where the warp shrinks, several samples a pixel are averaged: along the axis that shrinks, as a tilt needs it.
    """
    width, height = size
    pixels = resize(image.pixels, _OPENCV_SIDE)
    warp = warp @ np.linalg.inv(scaling(image.size, pixels.shape[1::-1]))
    warp = warp * np.sign(np.linalg.det(warp))
    back = np.linalg.inv(warp)
    grid = np.stack(np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)), -1).reshape(-1, 2)
    lands = transform(back, grid)
    steps = np.linalg.norm(slopes(back, grid), axis=1)
    steps = steps[((lands >= 0) & (lands < pixels.shape[1::-1])).all(axis=1)]
    samples = np.clip(np.round(np.median(steps, axis=0)), 1, _FINEST).astype(int) if len(steps) else np.ones(2, int)
    fine = min(int(samples[0]) * width, _OPENCV_SIDE), min(int(samples[1]) * height, _OPENCV_SIDE)

    def draw(source: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
        drawn = cv2.warpPerspective(source, scaling(size, fine) @ warp, fine, flags=cv2.INTER_LINEAR, borderMode=border)
        return np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), np.uint8)

    mask = np.full(pixels.shape[:2], 255, np.uint8) if image.mask is None else image.mask
    if mask.shape != pixels.shape[:2]:
        mask = np.asarray(cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_AREA), np.uint8)
    visible = draw((mask == 255).astype(np.uint8) * 255, cv2.BORDER_CONSTANT) == 255
    # Beyond the line that comes from infinity a homography shows the photograph mirrored.
    visible &= back[2, 0] * np.arange(width) + back[2, 1] * np.arange(height)[:, None] + back[2, 2] > 0
    kernel = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    eroded = cv2.erode(visible.astype(np.uint8) * 255, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=255)
    return Image(draw(pixels, cv2.BORDER_REPLICATE), np.asarray(eroded, np.uint8), image.name)


def tilted(size: tuple[int, int], options: ExtractorOptions) -> list[tuple[Array, tuple[int, int]]]:
    """Return warps of a photograph of ``size`` and the sizes of their pictures: upright at working size, then `TILTS`.

    A tilt t in one direction shrinks the photograph by t along it: what a distant plane looks like from the side.
    """
    working, upright = working_frame(size, options)
    corners = np.array([[0, 0], [working[0], 0], list(working), [0, working[1]]]) - 0.5
    warps = [(upright, working)]
    for tilt, directions in TILTS.items():
        for angle in np.arange(directions) * np.pi / directions:
            direction = np.array([np.cos(angle), np.sin(angle)])
            A = np.eye(3)
            A[:2, :2] -= (1 - 1 / tilt) * np.outer(direction, direction)
            moved = transform(A, corners)
            A[:2, 2] = -0.5 - moved.min(axis=0)
            width, height = np.ceil(np.ptp(moved, axis=0) - 1e-6).astype(int).tolist()
            warps.append((A @ upright, (width, height)))
    return warps


def cropped(size: tuple[int, int], points: ArrayLike, long_side: int) -> tuple[Array, tuple[int, int]]:
    """Return the warp to the part of a photograph of ``size`` around points (N, 2), and the size of its picture.

    Its long side is ``long_side``, unless more than `FINER` pixels would be made of one.
    """
    low, high = np.quantile(np.asarray(points, np.float64), [OUTSIDE, 1 - OUTSIDE], axis=0)
    low, high = low - AROUND * (high - low), high + AROUND * (high - low)
    low, high = np.clip(low, -0.5, np.array(size) - 1.5), np.clip(high, 0.5, np.array(size) - 0.5)
    factor = min(long_side / (high - low).max(), FINER)
    picture = max(1, round((high[0] - low[0]) * factor)), max(1, round((high[1] - low[1]) * factor))
    x, y = np.array(picture) / (high - low)
    warp = np.array([[x, 0, -low[0] * x - 0.5], [0, y, -low[1] * y - 0.5], [0, 0, 1]])
    return warp, picture


def working_frame(size: tuple[int, int], options: ExtractorOptions) -> tuple[tuple[int, int], Array]:
    """Return the size at which an extractor works, and the matrix from pixels of the photograph to its pixels."""
    working = working_size(size, options)
    return working, scaling(size, working)


def scaling(before: tuple[int, ...], after: tuple[int, ...]) -> Array:
    """Return the matrix (3, 3) of a resize: its outer edges stay where they are."""
    x, y = after[0] / before[0], after[1] / before[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def slopes(H: ArrayLike, points: ArrayLike) -> Array:
    """Return how a homography changes around points (N, 2): Jacobians (N, 2, 2), rows x and y, by differences."""
    at = np.asarray(points, np.float64)
    steps = [transform(H, at + half) - transform(H, at - half) for half in np.eye(2) / 2]
    return np.stack(steps, axis=2)
