"""Shi–Tomasi corners, for the descriptors that bring no detector of their own."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from .base import ExtractorOptions, best

DEFAULT_THRESHOLD = 2e-4
DEFAULT_NMS_RADIUS = 3


def corners(
    gray: NDArray[Any], border: int, mask: NDArray[np.uint8] | None, options: ExtractorOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the best corners with sub-pixel positions.

    Parameters
    ----------
    gray : uint8 array (H, W)
        The image.
    border : int
        No corner within this many pixels of the edge, where a patch would not fit.
    mask : uint8 array (H, W) or None
        0 means "no keypoints here".
    options : ExtractorOptions
        ``detection_threshold`` is the least smaller eigenvalue of the structure tensor, in [0, 1].

    Returns
    -------
    keypoints : float32 tensor (K, 2)
        (x, y) in pixels.
    scores : float32 tensor (K,)
        The smaller eigenvalue, falling.

    References
    ----------
    J. Shi and C. Tomasi, Good features to track, CVPR 1994.
    """
    # OpenCV scales Sobel gradients and their sums over 3 x 3 pixels so that eigenvalues lie in [0, 1].
    strength = cv2.cornerMinEigenVal(gray, blockSize=3, ksize=3)
    peaks = (strength == cv2.dilate(strength, np.ones((3, 3), np.uint8))) & (
        strength > (options.detection_threshold or 0)
    )
    border = max(border, 1)
    inside = np.zeros_like(peaks)
    inside[border:-border, border:-border] = True
    y, x = np.nonzero(peaks & inside)
    centre = strength[y, x]

    def offset(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
        """Vertex of the parabola through three neighbours; 0 on a plateau."""
        return (after - before) / 2 / np.maximum(2 * centre - before - after, 1e-12)

    shift = np.stack(
        [offset(strength[y, x - 1], strength[y, x + 1]), offset(strength[y - 1, x], strength[y + 1, x])],
        axis=1,
    )
    keypoints = torch.from_numpy((np.stack([x, y], axis=1) + shift.clip(-0.5, 0.5)).astype(np.float32))
    scores = torch.from_numpy(centre.clip(0, 1))
    chosen = best(keypoints, scores, mask, options)
    return keypoints[chosen], scores[chosen]
