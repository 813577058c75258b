"""Poses from matches with 3D points: closed form, wrong matches, and matches that determine nothing."""

from __future__ import annotations

import numpy as np
import pytest

from textured_room import CAMERA, look, rotation_error
from tiepoint.errors import ArgumentError
from tiepoint.geometry import Camera
from tiepoint.geometry.absolute import estimate_absolute_pose, estimate_camera_and_pose

pytest.importorskip("pycolmap")


def world_points(rng: np.random.Generator, count: int = 120) -> np.ndarray:
    return rng.uniform([-3, -2, 4], [3, 2, 12], (count, 3))


@pytest.mark.parametrize(
    "camera",
    [
        Camera.from_focal(600, (640, 480)),
        Camera("OPENCV", 640, 480, (500.0, 510.0, 300.0, 250.0, -0.2, 0.05, 0.001, -0.002)),
        Camera("OPENCV_FISHEYE", 640, 480, (320.0, 320.0, 319.5, 239.5, 0.02, -0.01, 0.0, 0.0)),
    ],
)
def test_pose_with_outliers(camera: Camera, rng: np.random.Generator) -> None:
    R, t = look((0.5, -0.3, 1.0), 0.2, -0.1)
    world = world_points(rng)
    pixels = camera.project(world @ R.T + t) + rng.normal(0, 0.3, (len(world), 2))
    wrong = rng.permutation(len(world))[:50]
    pixels[wrong] = rng.uniform(0, 480, (50, 2))
    found = estimate_absolute_pose(pixels, world, camera)
    assert found.R is not None and found.centre is not None
    assert rotation_error(found.R, R) < 0.1
    np.testing.assert_allclose(found.centre, -R.T @ t, atol=0.02)
    right = np.isfinite(pixels).all(axis=1)
    right[wrong] = False
    assert found.inliers[right].mean() > 0.98 and found.inliers[wrong].mean() < 0.1


def test_camera_and_pose(rng: np.random.Generator) -> None:
    camera = Camera("SIMPLE_RADIAL", 640, 480, (520.0, 319.5, 239.5, -0.08))
    R, t = look((0.5, -0.3, 1.0), 0.2, -0.1)
    world = world_points(rng)
    pixels = camera.project(world @ R.T + t) + rng.normal(0, 0.2, (len(world), 2))
    wrong = rng.permutation(len(world))[:50]
    pixels[wrong] = rng.uniform(0, 480, (50, 2))
    free = estimate_camera_and_pose(pixels, world, (640, 480), threshold=8)
    assert free.camera.params[0] == pytest.approx(520, rel=0.01)
    assert free.camera.params[1:3] == (319.5, 239.5)
    assert free.camera.params[3] == pytest.approx(-0.08, abs=0.02)
    np.testing.assert_allclose(free.centre, -R.T @ t, atol=0.06)
    known = estimate_camera_and_pose(pixels, world, (640, 480), focal=520.0, threshold=8)
    assert known.camera.params[0] == 520
    np.testing.assert_allclose(known.centre, -R.T @ t, atol=0.03)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_too_few_matches_give_no_pose(count: int, rng: np.random.Generator) -> None:
    pixels, world = rng.uniform(0, 400, (count, 2)), world_points(rng, count)
    for found in (
        estimate_absolute_pose(pixels, world, CAMERA, threshold=0.5),
        estimate_camera_and_pose(pixels, world, (320, 240), threshold=0.5),
        estimate_camera_and_pose(pixels, world, (320, 240), focal=260.0, threshold=0.5),
    ):
        assert found.R is None and found.centre is None and found.inliers.shape == (count,) and not found.inliers.any()


def test_hostile_matches(rng: np.random.Generator) -> None:
    world = world_points(rng)
    pixels = CAMERA.project(world)
    pixels[:5], world[5:9] = np.nan, np.inf
    for found in (
        estimate_absolute_pose(pixels, world, CAMERA),
        estimate_camera_and_pose(pixels, world, (320, 240)),
        estimate_camera_and_pose(pixels, world, (320, 240), focal=260.0),
    ):
        assert found.inliers.sum() == len(world) - 9 and not found.inliers[:9].any()
        np.testing.assert_allclose(found.centre, 0, atol=1e-3)
    # All matches on one point or one line determine nothing.
    for same in (np.repeat(world_points(rng, 1), 50, axis=0), np.outer(np.linspace(4, 9, 50), [0.1, 0.2, 1])):
        assert estimate_absolute_pose(CAMERA.project(same), same, CAMERA).R is None
    with pytest.raises(ArgumentError, match="points must be"):
        estimate_absolute_pose(pixels[:3], world, CAMERA)
