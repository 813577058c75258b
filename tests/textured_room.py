"""Photographs of a made-up room from any pose: for tests that need true poses and real pixels."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Camera

CAMERA = Camera.from_focal(260.0, (320, 240))
Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
LOW, HIGH = np.array([-3, -2, -3]), np.array([3, 2, 9])  # corners of the room, in metres


class Room:
    """A room of x in ±3, y in ±2, z in -3 ... 9, whose six walls are covered with a pattern of all scales."""

    def __init__(self, seed: int = 0) -> None:
        self.walls = _patterns(seed)

    def photograph(self, pose: Pose, camera: Camera = CAMERA) -> NDArray[np.uint8]:
        """Return the RGB picture (H, W, 3) of a camera inside at ``pose`` (R, t), world to camera."""
        x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        rays = camera.normalise(np.column_stack([x.ravel(), y.ravel()]))
        colour = self.look_along(pose, np.column_stack([rays, np.ones(len(rays))]))
        return colour.reshape(camera.height, camera.width, 3)

    def look_along(self, pose: Pose, directions: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the colours (N, 3) that rays in the camera's frame (N, 3) meet; nan sees black."""
        R, t = pose
        seen = np.isfinite(directions).all(axis=1)
        direction = np.where(seen[:, None], directions, (0.0, 0.0, 1.0)) @ R
        origin = -R.T @ t
        with np.errstate(divide="ignore"):
            to_low, to_high = (LOW - origin) / direction, (HIGH - origin) / direction
        distance = np.maximum(to_low, to_high)  # of the three planes that a ray moves towards
        axis = distance.argmin(axis=1)
        hit = origin + distance.min(axis=1, keepdims=True) * direction
        wall = 2 * axis + (direction[np.arange(len(axis)), axis] > 0)
        across = np.array([[1, 2], [0, 2], [0, 1]])[axis]
        uv = (np.take_along_axis(hit, across, axis=1) + 4) * 80  # pixels of the pattern: 80 a metre
        colour = np.zeros((len(direction), 3), np.uint8)
        for i, pattern in enumerate(self.walls):
            rows = (wall == i) & seen
            if rows.any():
                u, v = uv[rows].astype(np.float32).T[:, None, :]
                for part in range(0, u.shape[1], 30_000):  # cv2.remap takes at most 32767 columns
                    window = slice(part, part + 30_000)
                    at = np.flatnonzero(rows)[window]
                    colour[at] = cv2.remap(pattern, u[:, window], v[:, window], cv2.INTER_LINEAR)[0]
        return colour


def look(centre: tuple[float, float, float], yaw: float = 0.0, pitch: float = 0.0) -> Pose:
    """Return the pose (R, t) of a camera at ``centre``, turned right by ``yaw`` and down by ``pitch`` radians."""
    right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    R = np.stack([right, np.cross(forward, right), forward])
    return R, -R @ np.array(centre)


def on_the_walls(pose: Pose, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where the rays of pixels (N, 2) of a photograph meet the walls."""
    R, t = pose
    rays = np.column_stack([(pixels - [159.5, 119.5]) / 260.0, np.ones(len(pixels))]) @ R
    centre = -R.T @ t
    reach = np.maximum((LOW - centre) / rays, (HIGH - centre) / rays).min(axis=1)
    return centre + reach[:, None] * rays


def true_errors(
    pose0: Pose, pose1: Pose, points0: NDArray[np.float64], points1: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return by how many pixels matches miss where the wall that image 0 shows is in image 1."""
    seen = on_the_walls(pose0, points0) @ pose1[0].T + pose1[1]
    return np.linalg.norm(seen[:, :2] / seen[:, 2:] * 260.0 + [159.5, 119.5] - points1, axis=1)


def align(estimated: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (N, 3) moved, turned and scaled to lie as near as possible to ``true`` (Umeyama, PAMI 1991)."""
    a, b = estimated - estimated.mean(axis=0), true - true.mean(axis=0)
    U, S, Vt = np.linalg.svd(b.T @ a)
    D = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
    return (np.trace(np.diag(S) @ D) / (a**2).sum()) * a @ (U @ D @ Vt).T + true.mean(axis=0)


@cache
def _patterns(seed: int) -> list[NDArray[np.uint8]]:
    """Return the six walls of a room, drawn once for all tests."""
    rng = np.random.default_rng(seed)
    return [_pattern(rng) for _ in range(6)]


def _pattern(rng: np.random.Generator) -> NDArray[np.uint8]:
    side = 1100
    pattern = np.zeros((side, side, 3))
    for cells in (8, 25, 70, 180):
        coarse = rng.normal(0, 1, (cells, cells, 3))
        pattern += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 35 * pattern, 0, 255).astype(np.uint8)


def rotation_error(R: np.ndarray, truth: np.ndarray) -> float:
    """Return the angle between two rotations in degrees."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(R @ truth.T) - 1) / 2, -1, 1))))
