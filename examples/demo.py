"""Match two views of one photograph and check the result: ``make demo``.

The second view is the first one warped by a known homography, in another light, so every match can be checked
exactly. The photograph is NASA's portrait of Eileen Collins, public domain, which comes with scikit-image.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

import tiepoint as tp


def second_view(photo: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return ``photo`` from another place and in evening light, and the homography that leads there."""
    height, width = photo.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = np.array([[0.16, 0.02], [0.93, 0.16], [0.86, 0.98], [-0.02, 0.8]], np.float32) * (width, height)
    H = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    warped = cv2.warpPerspective(photo, H, (width, height), flags=cv2.INTER_AREA)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    light = (1.2 - 0.6 * x - 0.1 * y)[..., None] * (1.0, 0.86, 0.66)  # from the left, and warm
    noise = np.random.default_rng(0).normal(0, 4, warped.shape)
    return np.clip(255 * (warped / 255 * light) ** 0.9 + noise, 0, 255).astype(np.uint8), H


def main() -> None:
    """Match, check, draw."""
    photo = skimage.data.astronaut()
    other, H = second_view(photo)

    result = tp.match(photo, other, geometry="homography")

    error = tp.geometry.reprojection_error(H, result.points0, result.points1)
    print(result.choice)
    print(f"{len(result.features0)} and {len(result.features1)} keypoints, {len(result)} matches")
    print(f"{(error < 3).mean():.1%} of them are right to 3 pixels, median error {np.median(error):.2f} pixels")
    result.plot("matches.png", overwrite=True)  # its own, from the last time
    print("wrote matches.png")


if __name__ == "__main__":
    main()
