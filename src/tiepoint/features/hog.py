"""HOG: a histogram of gradient directions for each cell of a patch around a corner."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..types import Features
from .base import Extractor
from .corners import DEFAULT_NMS_RADIUS, DEFAULT_THRESHOLD, corners

_CELLS = 4
_CELL = 8  # pixels
_BINS = 9


class HOG(Extractor):
    """Dalal and Triggs' descriptor of one block of 4 x 4 cells of 8 pixels, at Shi–Tomasi corners.

    For views of about the same scale and roll: HOG is invariant to neither. Unsigned directions in nine bins;
    votes are shared between neighbouring bins and, by a Gaussian instead of a hard border, between neighbouring
    cells; the block is normalised by L2-Hys (unit length, cut at 0.2, unit length). Corners need a whole patch of
    32 x 32 pixels inside the image. ``detection_threshold`` and scores are those of
    `tiepoint.features.corners.corners`.

    References
    ----------
    N. Dalal and B. Triggs, Histograms of oriented gradients for human detection, CVPR 2005.

    Examples
    --------
    >>> import numpy as np
    >>> square = np.zeros((80, 80), np.uint8)
    >>> square[30:50, 30:50] = 255
    >>> found = HOG()(square)
    >>> len(found), found.descriptors.shape[1]
    (4, 144)
    """

    name: ClassVar[str] = "hog"
    default_threshold: ClassVar[float] = DEFAULT_THRESHOLD
    default_nms_radius: ClassVar[int] = DEFAULT_NMS_RADIUS

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        keypoints, scores = corners(gray, _CELLS * _CELL // 2, mask, self.options)
        return Features(
            keypoints=keypoints,
            scores=scores,
            descriptors=torch.from_numpy(_describe(gray, np.rint(keypoints.numpy()).astype(np.int64))),
            image_size=pixels.shape[1::-1],
            extractor=self.name,
        )


def _describe(gray: NDArray[Any], centres: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the descriptors (N, 144) of patches around ``centres`` (N, 2), pixels (x, y)."""
    # A little smoothing first: single-pixel gradients are mostly noise.
    smooth = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), 1)
    gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=1)
    gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=1)
    magnitude, angle = cv2.cartToPolar(gx, gy)
    position = angle * (_BINS / np.pi)  # in bins, twice around
    # The cells of every pixel's own patch, one map for each direction, read out at the cells' centres.
    cells = (np.arange(_CELLS) - (_CELLS - 1) / 2) * _CELL
    rows = (centres[:, 1, None, None] + cells[:, None]).astype(np.int64)
    columns = (centres[:, 0, None, None] + cells).astype(np.int64)
    histogram = np.empty((len(centres), _CELLS, _CELLS, _BINS), np.float32)
    for k in range(_BINS):
        away = np.abs((position - k + _BINS / 2) % _BINS - _BINS / 2)  # circular distance from the bin
        votes = magnitude * np.maximum(1 - away, 0)
        histogram[..., k] = cv2.GaussianBlur(votes, (0, 0), _CELL / 2)[rows, columns]
    block = histogram.reshape(len(centres), _CELLS * _CELLS * _BINS)
    for limit in (0.2, np.inf):
        block = np.minimum(block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-6), limit)
    return block
