"""A made-up world with known cameras, for the tests of mapping: as a database, as a model, and as photographs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pycolmap
import torch
from numpy.typing import NDArray

from tiepoint import Features
from tiepoint.geometry import Camera, essential_from_pose, relative_pose
from tiepoint.mapping import NewImage, PairResult, Store

CAMERA = Camera("SIMPLE_RADIAL", 400, 300, (380.0, 199.5, 149.5, -0.12))
Pose = tuple[NDArray[np.float64], NDArray[np.float64]]


class SyntheticScene:
    """Cameras on an arc that look at a cloud of coloured points; everything follows from ``seed``.

    ``poses`` are world-to-camera, ``points`` (N, 3), ``colours`` uint8 (N, 3). ``visible[i]`` lists the points in image
    i, ``keypoints[i]`` (M, 2) their pixels, off by Gaussian ``noise``.
    """

    def __init__(
        self, names: Sequence[str], seed: int = 0, points: int = 150, noise: float = 0.0, camera: Camera = CAMERA
    ) -> None:
        rng = np.random.default_rng(seed)
        self.names, self.camera = list(names), camera
        self.points = rng.uniform(-1, 1, (points, 3)) * (1.4, 1.0, 0.8)
        self.colours = rng.integers(80, 256, (points, 3)).astype(np.uint8)
        self.poses = [_look(angle) for angle in np.linspace(-0.5, 0.5, len(names))]
        self.rng, self.noise = rng, noise
        self.place_points()

    def place_points(self) -> None:
        """Find what each image sees; call it again after changing the poses."""
        self.visible, self.keypoints = [], []
        for R, t in self.poses:
            pixels = self.camera.project(self.points @ R.T + t)
            size = np.array([self.camera.width, self.camera.height])
            inside = ((pixels > 4) & (pixels < size - 5)).all(axis=1)
            self.visible.append(np.flatnonzero(inside))
            self.keypoints.append(pixels[inside] + self.rng.normal(0, self.noise, (inside.sum(), 2)))

    def write_database(
        self, path: Path, pairs: Sequence[tuple[int, int]] | None = None, known_focal: bool = True
    ) -> None:
        """Add images, features and verified matches; ``pairs`` are places in the list of names, by default all."""
        camera = to_pycolmap(self.camera)
        camera.has_prior_focal_length = known_focal
        with Store.open(path) as store:
            ids = store.add_images([NewImage(name, camera) for name in self.names])
            for name, keypoints in zip(self.names, self.keypoints, strict=True):
                store.write_features([(ids[name], make_features(keypoints, self.camera))])
            if pairs is None:
                pairs = list(itertools.combinations(range(len(self.names)), 2))
            results = []
            for i, j in pairs:
                _, a, b = np.intersect1d(self.visible[i], self.visible[j], return_indices=True)
                R, t = relative_pose(self.poses[i], self.poses[j])
                results.append(
                    PairResult(
                        ids[self.names[i]],
                        ids[self.names[j]],
                        np.column_stack([a, b]),
                        np.ones(len(a)),
                        inliers=np.ones(len(a), bool),
                        config="CALIBRATED",
                        E=essential_from_pose(R, t),
                        R=R,
                        t=t,
                    )
                )
            store.write_matches(results)

    def model(self, one_camera: bool = False) -> pycolmap.Reconstruction:
        """Return the true model, with every point that two images or more see; images share ``one_camera``, or none."""
        model = pycolmap.Reconstruction()
        for number, (name, pose) in enumerate(zip(self.names, self.poses, strict=True), 1):
            camera = to_pycolmap(self.camera)
            camera.camera_id = 1 if one_camera else number
            if not model.exists_camera(camera.camera_id):
                model.add_camera_with_trivial_rig(camera)
            image = pycolmap.Image(
                name=name, image_id=number, camera_id=camera.camera_id, keypoints=self.keypoints[number - 1] + 0.5
            )
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(pose[0]), pose[1]))
        for point, (xyz, colour) in enumerate(zip(self.points, self.colours, strict=True)):
            track = pycolmap.Track()
            for number, visible in enumerate(self.visible, 1):
                for row in np.flatnonzero(visible == point):
                    track.add_element(number, int(row))
            if track.length() >= 2:
                model.add_point3D(xyz, track, colour)
        return model

    def write_photographs(self, folder: Path) -> None:
        """Draw each visible point as a blob of its colour, exactly at its keypoint."""
        reach = 8  # pixels; farther away a blob adds less than half a grey level
        for name, visible, keypoints in zip(self.names, self.visible, self.keypoints, strict=True):
            pixels = np.zeros((self.camera.height, self.camera.width, 3))
            for point, (u, v) in zip(visible, keypoints, strict=True):
                top, left = max(0, int(v) - reach), max(0, int(u) - reach)
                around = pixels[top : int(v) + reach + 2, left : int(u) + reach + 2]
                y, x = np.ogrid[: around.shape[0], : around.shape[1]]
                weight = np.exp(-((x + left - u) ** 2 + (y + top - v) ** 2) / (2 * 1.5**2))
                np.maximum(around, weight[..., None] * self.colours[point], out=around)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.rint(pixels).astype(np.uint8)).save(path, quality=98)


def to_pycolmap(camera: Camera) -> pycolmap.Camera:
    model, width, height, params = camera.to_colmap()
    return pycolmap.Camera(model=model, width=width, height=height, params=params)


def make_features(keypoints: NDArray[np.float64], camera: Camera) -> Features:
    n = len(keypoints)
    return Features(
        torch.tensor(keypoints, dtype=torch.float32).reshape(n, 2),
        torch.ones(n),
        torch.zeros(n, 8),
        (camera.width, camera.height),
        "xfeat",
    )


def _look(angle: float) -> Pose:
    """Return the pose of a camera on an arc of radius 4 around the origin, a little above, looking at the origin."""
    centre = np.array([4 * math.sin(angle), -0.6, -4 * math.cos(angle)])
    forward = -centre / np.linalg.norm(centre)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return R, -R @ centre
