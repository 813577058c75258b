"""SURF: blobs of the Hessian found with box filters, described by sums of Haar wavelets."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MissingDependencyError
from ..types import Features
from .base import Extractor, best

_OCTAVES = 4
_INTERVALS = 4


class SURF(Extractor):
    """Fast-Hessian blobs with mahotas' SURF descriptors.

    The detector is written out here: that of mahotas (1.4.19) refines its maxima in the wrong direction, so that
    positions are off by half a pixel in the first octave and by more in the others. No keypoint lies within 16
    times its scale of the edge, where the descriptor's patch would not fit; that is at least 20 pixels.

    The score is the determinant of the Hessian, for grey values in [0, 1]; ``detection_threshold`` is the least.
    `Features.scales` are filter widths, as in OpenCV.

    SURF is patented (among others US 8,165,401, filed in 2007), which is why OpenCV's packages leave it out. The
    patents may still be in force in some countries: check before you use it.

    Raises
    ------
    MissingDependencyError
        mahotas is not installed.

    References
    ----------
    H. Bay, A. Ess, T. Tuytelaars and L. Van Gool, Speeded-up robust features (SURF), CVIU 110 (3), 2008.
    """

    name: ClassVar[str] = "surf"
    default_threshold: ClassVar[float] = 1e-4

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        try:
            from mahotas.features import surf
        except ImportError as error:
            raise MissingDependencyError("mahotas", "classic", "SURF") from error
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        points = _fast_hessian(gray, self.options.detection_threshold or 0)
        # A Haar wavelet whose width int(2 scale + 0.5) is odd has unequal halves and reacts to plain
        # brightness: use the nearest scale that makes it even.
        whole = np.rint(points[:, 2])
        scales = whole + (points[:, 2] - whole).clip(-0.249, 0.249)
        margin = 16 * scales[:, None] + 2  # the rotated square of 20 scales, and half a wavelet
        fits = np.flatnonzero(((points[:, :2] >= margin) & (points[:, :2] < [gray.shape[::-1]] - margin)).all(axis=1))
        keypoints, scores = (torch.from_numpy(points[fits, i].astype(np.float32)) for i in (slice(2), 3))
        rows = fits[best(keypoints, scores, mask, self.options).numpy()]
        points, scales = points[rows], scales[rows]
        # In: y, x, scale, score, sign of the Laplacian. Out: the same, angle, descriptor. mahotas rounds down,
        # so its wavelets lie between half a pixel and one pixel too far to the left and up.
        ones = np.ones(len(points))
        table = surf.descriptors(
            surf.integral(gray),
            np.stack([points[:, 1] + 0.75, points[:, 0] + 0.75, scales, ones, ones], axis=1),
            is_integral=True,
        )
        return Features(
            keypoints=torch.from_numpy(points[:, :2].astype(np.float32)),
            scores=torch.from_numpy(points[:, 3].clip(0, 1).astype(np.float32)),
            descriptors=torch.nn.functional.normalize(torch.from_numpy(table[:, 6:].astype(np.float32))),
            image_size=pixels.shape[1::-1],
            extractor=self.name,
            scales=torch.from_numpy((points[:, 2] * 7.5).astype(np.float32)),
            # mahotas' angle is that of falling brightness, from +y towards +x.
            orientations=torch.from_numpy(((-np.pi / 2 - table[:, 5]) % (2 * np.pi)).astype(np.float32)),
        )


def _determinant(gray: NDArray[Any], lobe: int) -> NDArray[Any]:
    """Return the determinant of the box-filter Hessian; ``lobe``, odd, is a third of the filter width."""

    def box(width: int, height: int) -> NDArray[Any]:
        sums = cv2.boxFilter(gray, cv2.CV_32F, (width, height), normalize=False, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(sums, np.float32) / (3 * lobe) ** 2

    xx = box(3 * lobe, 2 * lobe - 1) - 3 * box(lobe, 2 * lobe - 1)
    yy = box(2 * lobe - 1, 3 * lobe) - 3 * box(2 * lobe - 1, lobe)
    quarter, d = box(lobe, lobe), lobe // 2 + 1
    # What wraps around here stays within the filter's half width of the edge, where no keypoint is taken.
    same = np.roll(quarter, (d, d), (0, 1)) + np.roll(quarter, (-d, -d), (0, 1))
    opposite = np.roll(quarter, (d, -d), (0, 1)) + np.roll(quarter, (-d, d), (0, 1))
    return xx * yy - 0.81 * (same - opposite) ** 2


def _fast_hessian(gray: NDArray[Any], threshold: float) -> NDArray[np.float64]:
    """Find maxima of the determinant in position and scale; return rows (x, y, scale, determinant)."""
    height, width = gray.shape
    points = [np.zeros((0, 4))]
    for octave in range(_OCTAVES):
        step = 2**octave
        lobes = [2 * step * (i + 1) + 1 for i in range(_INTERVALS)]
        response = np.stack([_determinant(gray, lobe)[::step, ::step] for lobe in lobes])
        largest = np.stack([cv2.dilate(layer, np.ones((3, 3), np.uint8)) for layer in response])
        for i in range(1, _INTERVALS - 1):
            peaks = (response[i] == largest[i - 1 : i + 2].max(axis=0)) & (response[i] > threshold)
            y, x = np.nonzero(peaks)
            border = 3 * lobes[i] // 2 + 1
            inside = (np.minimum(x, y) * step >= border) & (x * step < width - border) & (y * step < height - border)
            y, x = y[inside], x[inside]
            shift = _refine(response[i - 1 : i + 2], x, y)
            scale = 0.4 * (2 * step * (i + 1 + shift[:, 2]) + 1)  # 1.2 for the filter of 9 pixels, lobe 3
            found = [(x + shift[:, 0]) * step, (y + shift[:, 1]) * step, scale, response[i, y, x]]
            points.append(np.stack(found, axis=1)[(np.abs(shift) <= 1).all(axis=1)])
    return np.concatenate(points)


def _refine(layers: NDArray[Any], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the offsets (N, 3), as (x, y, layer), of the quadratic's vertex from each maximum."""

    def at(dx: int, dy: int, ds: int) -> NDArray[np.float64]:
        return layers[1 + ds, y + dy, x + dx].astype(np.float64)

    axes = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    gradient = np.empty((len(x), 3))
    hessian = np.empty((len(x), 3, 3))
    for a, u in enumerate(axes):
        gradient[:, a] = (at(*u) - at(-u[0], -u[1], -u[2])) / 2
        hessian[:, a, a] = at(*u) - 2 * at(0, 0, 0) + at(-u[0], -u[1], -u[2])
        for b, v in enumerate(axes[:a]):
            p = (u[0] + v[0], u[1] + v[1], u[2] + v[2])
            m = (u[0] - v[0], u[1] - v[1], u[2] - v[2])
            mixed = at(*p) + at(-p[0], -p[1], -p[2]) - at(*m) - at(-m[0], -m[1], -m[2])
            hessian[:, a, b] = hessian[:, b, a] = mixed / 4
    return -(np.linalg.pinv(hessian, hermitian=True) @ gradient[:, :, None])[:, :, 0]
