"""An extractor of your own: FAST corners, each described by the 8 x 8 pixels around it.

Put such a class in a package of yours, and these lines in that package's ``pyproject.toml``::

    [project.entry-points."tiepoint.extractors"]
    patches = "own_extractor:Patches"

Once the package is installed, tiepoint knows it by name, everywhere::

    tiepoint match a.jpg b.jpg --features patches --matcher nearest

    extractor = tiepoint.features.load("patches", max_keypoints=500)
    matcher = tiepoint.matchers.load("nearest", features="patches", ratio=0.9)

Resizing, masks, non-maximum suppression, the cut to the best K and the tiling of large photographs come from the base
class; `_extract` sees one RGB image and returns everything that it finds.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from tiepoint.features import Extractor
from tiepoint.types import Features


class Patches(Extractor):
    """FAST corners with the normalised brightness of their surroundings: fine for small motions."""

    name = "patches"
    default_threshold = 20.0
    default_nms_radius = 3

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        found = cv2.FastFeatureDetector.create(round(self.options.detection_threshold or 0)).detect(gray)
        keypoints = np.array([k.pt for k in found], np.float32).reshape(-1, 2)
        scores = np.array([k.response for k in found], np.float32) / 255

        # 16 x 16 pixels around each corner, every second one of a smoothed image: 64 numbers of mean 0, length 1
        smooth = np.pad(cv2.GaussianBlur(gray, (0, 0), 1.5).astype(np.float32), 8, "edge")
        offsets = np.arange(0, 16, 2)
        x, y = keypoints.astype(int).T
        patches = smooth[y[:, None, None] + offsets[:, None], x[:, None, None] + offsets].reshape(len(x), 64)
        patches -= patches.mean(axis=1, keepdims=True)
        descriptors = torch.nn.functional.normalize(torch.from_numpy(patches))

        return Features(
            torch.from_numpy(keypoints), torch.from_numpy(scores), descriptors, pixels.shape[1::-1], self.name
        )
