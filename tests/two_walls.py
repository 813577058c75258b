"""Photographs of two walls from places on a line: a scene that classic features map in seconds."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

SIZE, FOCAL = (320, 240), 300.0
CLASSIC = ["-f", "sift", "-m", "nearest", "-k", "600", "--long-side", "1600", "--quality", "fast", "--workers", "0"]
CLASSIC += ["--focal", str(FOCAL)]


@cache
def wall(seed: int) -> np.ndarray:
    """Return a picture (600, 900, 3) with structure at all scales."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((600, 900, 3))
    for cell in (4, 8, 16, 40):
        noise = rng.uniform(0, 1, (600 // cell + 2, 900 // cell + 2, 3))
        picture += cv2.resize(noise, (900, 600), interpolation=cv2.INTER_CUBIC)
    return np.clip((picture - 1) * 127, 0, 255).astype(np.uint8)


def view(x: float) -> np.ndarray:
    """Photograph two walls, one in front of half of the other, from the place (x, 0, 0)."""
    K = np.array([[FOCAL, 0, 159.5], [0, FOCAL, 119.5], [0, 0, 1]])
    angle = 0.08 * x
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    photograph = np.zeros((240, 320, 3), np.uint8)
    for seed, depth, left in ((1, 4.0, -4.5), (2, 2.6, -0.2)):
        origin, scale = np.array([left, -3.0, depth]), 0.01
        H = K @ np.column_stack([R[:, 0] * scale, R[:, 1] * scale, R @ (origin - [x, 0, 0])])
        seen = cv2.warpPerspective(np.full((600, 900), 255, np.uint8), H, SIZE) > 127
        photograph[seen] = cv2.warpPerspective(wall(seed), H, SIZE)[seen]
    return photograph
