"""Photographs of the textured room by a camera of each of COLMAP's models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from textured_room import Room, look

# What took the pictures of the room, 320x240 (the panorama 400x200), as COLMAP has them.
TRUE = {
    "SIMPLE_PINHOLE": (220, 160, 120),
    "PINHOLE": (220, 222, 160, 120),
    "SIMPLE_RADIAL": (220, 160, 120, -0.08),
    "RADIAL": (220, 160, 120, -0.1, 0.02),
    "OPENCV": (220, 222, 160, 120, -0.1, 0.02, 0.001, -0.001),
    "FULL_OPENCV": (220, 222, 160, 120, -0.1, 0.02, 0.001, -0.001, 0, 0, 0, 0),
    "SIMPLE_RADIAL_FISHEYE": (150, 160, 120, 0.02),
    "RADIAL_FISHEYE": (150, 160, 120, 0.02, -0.005),
    "OPENCV_FISHEYE": (150, 151, 160, 120, 0.02, -0.005, 0.001, 0),
    "FOV": (220, 222, 160, 120, 0.4),
    "THIN_PRISM_FISHEYE": (150, 151, 160, 120, 0.02, -0.005, 1e-3, -1e-3, 0.001, 0, 1e-3, 0),
    "RAD_TAN_THIN_PRISM_FISHEYE": (150, 151, 160, 120, 0.02, -0.005, 0.001, 0, 0, 0, 1e-3, -1e-3, 1e-3, 0, 0, 0),
    "SIMPLE_DIVISION": (220, 160, 120, -0.08),
    "DIVISION": (220, 222, 160, 120, -0.08),
    "SIMPLE_FISHEYE": (150, 160, 120),
    "FISHEYE": (150, 151, 160, 120),
    "EUCM": (220, 222, 160, 120, 0.3, 1.1),
    "EQUIRECTANGULAR": (400, 200),
}
FISHEYES = [model for model in TRUE if "FISHEYE" in model]
ROOM = 12.0  # metres, its longest side
POSES = [
    look((-1.4 + 0.45 * i, 0.25 * (-1) ** i, -2.2 + 0.3 * (i % 3)), 0.25 - 0.08 * i, 0.15 * (-1) ** (i // 2))
    for i in range(7)
]
QUERY = 3
PLACES = np.array([-R.T @ t for R, t in POSES])


def camera_of(model: str) -> pycolmap.Camera:
    width, height = (400, 200) if model == "EQUIRECTANGULAR" else (320, 240)
    return pycolmap.Camera(model=model, width=width, height=height, params=TRUE[model])


def photographs(model: str, folder: Path, numbers: Iterable[int] = range(len(POSES))) -> None:
    camera, room = camera_of(model), Room(1)
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.asarray(camera.cam_ray_from_img(np.column_stack([x.ravel(), y.ravel()])))
    folder.mkdir()
    for number in numbers:
        picture = room.look_along(POSES[number], rays).reshape(camera.height, camera.width, 3)
        cv2.imwrite(str(folder / f"{number}.png"), picture[..., ::-1])
