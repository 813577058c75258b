"""ORB: FAST corners on an image pyramid, oriented, described by 256 comparisons of brightness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..types import Features
from .base import Extractor

_SCALE_FACTOR = 1.2
_BORDER = 31  # half of the patch, rotated, plus smoothing: OpenCV finds nothing nearer to the edge of a level


class ORB(Extractor):
    """OpenCV's ORB.

    The score is the Harris response, and the best keypoints are chosen by it over all levels of the pyramid;
    edges, whose response is negative, score 0. ``detection_threshold`` is FAST's: how much brighter or darker than
    the centre the pixels of the circle must be, in grey values of 0 to 255. Descriptors are 32 bytes.

    References
    ----------
    E. Rublee, V. Rabaud, K. Konolige and G. Bradski, ORB: an efficient
    alternative to SIFT or SURF, ICCV 2011.

    Examples
    --------
    >>> import numpy as np
    >>> square = np.zeros((120, 120), np.uint8)
    >>> square[50:70, 50:70] = 255
    >>> found = ORB()(square)
    >>> found.descriptors.shape[1], found.is_binary
    (32, True)
    """

    name: ClassVar[str] = "orb"
    default_threshold: ClassVar[float] = 20

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        height, width = pixels.shape[:2]
        found: Sequence[cv2.KeyPoint] = ()
        descriptors = None
        if min(height, width) > 2 * _BORDER:
            orb = cv2.ORB.create(
                nfeatures=10**6,  # all of them: OpenCV's own cut gives every level a fixed share
                scaleFactor=_SCALE_FACTOR,
                edgeThreshold=_BORDER,
                fastThreshold=round(self.options.detection_threshold or 0),
            )
            found, descriptors = orb.detectAndCompute(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None)
        table = np.array([(*k.pt, k.response, k.size, k.angle, k.octave) for k in found], np.float64)
        table = table.reshape(-1, 6)
        # OpenCV multiplies the coordinates on a level by its scale, as if pixel (0, 0) of all levels had one centre.
        scale = _SCALE_FACTOR ** table[:, 5:]
        level_size = np.rint(np.array([[width, height]]) / scale)
        keypoints = (table[:, :2] / scale + 0.5) * ([width, height] / level_size) - 0.5
        if descriptors is None:
            descriptors = np.zeros((0, 32), np.uint8)
        return Features(
            keypoints=torch.from_numpy(keypoints.astype(np.float32)),
            scores=torch.from_numpy(table[:, 2].clip(0, 1).astype(np.float32)),
            descriptors=torch.from_numpy(descriptors),
            image_size=(width, height),
            extractor=self.name,
            scales=torch.from_numpy(table[:, 3].astype(np.float32)),
            orientations=torch.from_numpy(np.deg2rad(table[:, 4]).astype(np.float32)),
        )
