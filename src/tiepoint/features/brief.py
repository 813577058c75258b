"""BRIEF: 256 comparisons of brightness between pairs of pixels around a corner."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MissingDependencyError
from ..types import Features
from .base import Extractor
from .corners import DEFAULT_NMS_RADIUS, DEFAULT_THRESHOLD, corners

_PATCH = 49


class BRIEF(Extractor):
    """scikit-image's BRIEF at Shi–Tomasi corners.

    For views of about the same scale and roll: BRIEF is invariant to neither (ORB is BRIEF made so). Corners
    need a whole patch of 49 x 49 pixels inside the image. Descriptors are 32 bytes; ``detection_threshold`` and
    scores are those of `tiepoint.features.corners.corners`.

    Raises
    ------
    MissingDependencyError
        scikit-image is not installed.

    References
    ----------
    M. Calonder, V. Lepetit, C. Strecha and P. Fua, BRIEF: binary robust independent elementary features,
    ECCV 2010.
    """

    name: ClassVar[str] = "brief"
    default_threshold: ClassVar[float] = DEFAULT_THRESHOLD
    default_nms_radius: ClassVar[int] = DEFAULT_NMS_RADIUS

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        try:
            import skimage.feature
        except ImportError as error:
            raise MissingDependencyError("scikit-image", "classic", "BRIEF") from error
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        keypoints, scores = corners(gray, _PATCH // 2 + 1, mask, self.options)
        # The paper's 256 normally distributed pairs, on an image smoothed with sigma 2. The pairs must be the
        # same for every image, for ever: they are drawn from a fixed seed.
        brief = skimage.feature.BRIEF(descriptor_size=256, patch_size=_PATCH, mode="normal", sigma=2, rng=1)
        bits = np.zeros((0, 256), bool)
        if len(keypoints):
            brief.extract(gray, np.rint(keypoints.numpy()[:, ::-1]).astype(np.int64))
            bits = brief.descriptors
        return Features(
            keypoints=keypoints,
            scores=scores,
            descriptors=torch.from_numpy(np.packbits(bits, axis=1)),
            image_size=pixels.shape[1::-1],
            extractor=self.name,
        )
