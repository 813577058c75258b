"""Questions to a model of COLMAP's (`pycolmap.Reconstruction`) that several modules have."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..geometry import homogeneous

if TYPE_CHECKING:
    import pycolmap

Matrix = NDArray[np.float64]


def registered(model: pycolmap.Reconstruction) -> list[pycolmap.Image]:
    """Return the images of a model that have a pose, sorted by name."""
    return sorted((model.images[image_id] for image_id in model.reg_image_ids()), key=lambda image: image.name)


def point_ids(image: pycolmap.Image) -> NDArray[np.int64]:
    """Return the 3D point that each keypoint of an image observes, int64 (N,); -1 for none."""
    return np.array([point.point3D_id if point.has_point3D() else -1 for point in image.points2D], np.int64)


def shared_points(model: pycolmap.Reconstruction) -> Counter[tuple[int, int]]:
    """Return how many points two images observe both, by their ids, the smaller first; only pairs that have any."""
    shared: Counter[tuple[int, int]] = Counter()
    for point in model.points3D.values():
        shared.update(combinations(sorted({element.image_id for element in point.track.elements}), 2))
    return shared


class PosedCamera(NamedTuple):
    """The camera of an image of a model, its rotation (3, 3), world to camera, and where it stands (3,)."""

    camera: pycolmap.Camera
    R: Matrix
    centre: Matrix

    @classmethod
    def of(cls, model: pycolmap.Reconstruction, image: pycolmap.Image) -> PosedCamera:
        """Return that of one image."""
        pose = image.cam_from_world()
        return cls(model.cameras[image.camera_id], pose.rotation.matrix(), image.projection_center())

    def rays(self, pixels: Matrix) -> Matrix:
        """Return the directions (N, 3) of COLMAP's pixels (N, 2) in the world, 1 deep; nan where the lens has none."""
        on_plane = np.asarray(self.camera.cam_from_img(pixels), np.float64).reshape(-1, 2)
        return homogeneous(on_plane) @ self.R

    def project(self, points: Matrix) -> Matrix:
        """Return where points (N, 3) of the world are seen, in COLMAP's pixels (N, 2)."""
        return np.asarray(self.camera.img_from_cam((points - self.centre) @ self.R.T)).reshape(-1, 2)
