"""Cameras against pycolmap and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiepoint.errors import ArgumentError
from tiepoint.geometry import Camera
from tiepoint.geometry.camera import MODELS

# Moderate distortions of each model; (cx, cy) is off the middle of 640x480 on purpose.
CAMERAS = [
    Camera("SIMPLE_PINHOLE", 640, 480, (500, 310.5, 250.5)),
    Camera("PINHOLE", 640, 480, (500, 520, 310.5, 250.5)),
    Camera("SIMPLE_RADIAL", 640, 480, (500, 310.5, 250.5, -0.1)),
    Camera("RADIAL", 640, 480, (500, 310.5, 250.5, -0.2, 0.05)),
    Camera("OPENCV", 640, 480, (500, 520, 310.5, 250.5, -0.2, 0.05, 0.002, -0.003)),
    Camera("FULL_OPENCV", 640, 480, (500, 520, 310.5, 250.5, 0.1, 0.05, 0.002, -0.003, 0.01, 0.2, 0.03, 0.01)),
    Camera("SIMPLE_RADIAL_FISHEYE", 640, 480, (300, 310.5, 250.5, -0.02)),
    Camera("RADIAL_FISHEYE", 640, 480, (300, 310.5, 250.5, 0.03, -0.01)),
    Camera("OPENCV_FISHEYE", 640, 480, (300, 310, 310.5, 250.5, 0.03, -0.01, 0.004, -0.001)),
    Camera("SIMPLE_FISHEYE", 640, 480, (300, 310.5, 250.5)),
    Camera("FISHEYE", 640, 480, (300, 310, 310.5, 250.5)),
    Camera("FOV", 640, 480, (500, 520, 310.5, 250.5, 0.3)),
    Camera(
        "THIN_PRISM_FISHEYE", 640, 480, (300, 310, 310.5, 250.5, 0.03, -0.01, 1e-4, -2e-4, 0.004, 0, 1e-4, 1e-4)
    ),
    Camera(
        "RAD_TAN_THIN_PRISM_FISHEYE", 640, 480,
        (300, 310, 310.5, 250.5, 0.03, -0.01, 0.004, -0.001, 0, 0, 1e-4, -2e-4, 1e-4, 0, 1e-4, 0),
    ),
    Camera("SIMPLE_DIVISION", 640, 480, (500, 310.5, 250.5, -0.1)),
    Camera("DIVISION", 640, 480, (500, 520, 310.5, 250.5, -0.1)),
    Camera("EUCM", 640, 480, (500, 520, 310.5, 250.5, 0.3, 1.1)),
]  # fmt: skip
all_models = pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.model)


def on_plane(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))])


def test_every_model_is_tried() -> None:
    assert [camera.model for camera in CAMERAS] == list(MODELS)


@all_models
def test_agrees_with_pycolmap(camera: Camera, rng) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model, width, height, params = camera.to_colmap()
    theirs = pycolmap.Camera(model=model, width=width, height=height, params=params)
    pixels = rng.uniform([0, 0], [639, 479], (300, 2))
    np.testing.assert_allclose(camera.normalise(pixels), theirs.cam_from_img(pixels + 0.5), atol=1e-8)
    points = rng.uniform([-1, -1, 2], [1, 1, 5], (300, 3))
    np.testing.assert_allclose(camera.project(points), theirs.img_from_cam(points) - 0.5, atol=1e-8)


@all_models
def test_normalise_inverts_project(camera: Camera, rng) -> None:
    pixels = rng.uniform([0, 0], [639, 479], (300, 2))
    np.testing.assert_allclose(camera.project(on_plane(camera.normalise(pixels))), pixels, atol=1e-7)


@all_models
def test_the_principal_point_looks_straight_ahead(camera: Camera) -> None:
    np.testing.assert_allclose(camera.normalise([[310.5, 250.5]]), [[0, 0]], atol=1e-12)
    np.testing.assert_allclose(camera.project([[0, 0, 3]]), [[310.5, 250.5]])


@all_models
def test_colmap_and_back(camera: Camera) -> None:
    assert camera.to_colmap()[3][MODELS[camera.model].index("cx")] == 311
    assert Camera.from_colmap(*camera.to_colmap()) == camera
    assert hash(Camera.from_colmap(*camera.to_colmap())) == hash(camera)


def test_agrees_with_opencv(rng) -> None:
    points = rng.uniform([-1, -1, 2], [1, 1, 5], (50, 3))
    full = next(c for c in CAMERAS if c.model == "FULL_OPENCV")
    theirs = cv2.projectPoints(points, np.zeros(3), np.zeros(3), full.K, np.array(full.params[4:]))[0][:, 0]
    np.testing.assert_allclose(full.project(points), theirs, atol=1e-9)
    fisheye = next(c for c in CAMERAS if c.model == "OPENCV_FISHEYE")
    zero = np.zeros((1, 1, 3))
    theirs = cv2.fisheye.projectPoints(points[:, None], zero, zero, fisheye.K, np.array(fisheye.params[4:]))[0][:, 0]
    np.testing.assert_allclose(fisheye.project(points), theirs, atol=1e-9)


def test_K_and_focal_constructors() -> None:
    K = np.array([[500, 0, 320.0], [0, 510, 240], [0, 0, 1]])
    camera = Camera.from_K(K, (640, 480))
    np.testing.assert_array_equal(camera.K, K)
    assert camera.focal_lengths == (500, 510) and camera.principal_point == (320, 240)
    # The middle of the image, where COLMAP puts (width / 2, height / 2).
    assert Camera.from_focal(500, (640, 480)).to_colmap() == ("SIMPLE_PINHOLE", 640, 480, (500, 320, 240))
    with pytest.raises(ArgumentError, match="K must be"):
        Camera.from_K(K + np.eye(3, k=1), (640, 480))


def test_points_that_no_ray_reaches_are_nan() -> None:
    camera = Camera("SIMPLE_RADIAL", 640, 480, (500, 319.5, 239.5, -0.3))
    # r (1 - 0.3 r^2) grows up to r = 1.054 only, where it is 0.703: pixels further out do not exist.
    fold = 319.5 + 500 * 0.7027
    inside, outside = camera.normalise([[fold - 1, 239.5], [fold + 1, 239.5]])
    assert 0.9 < inside[0] < 1.055
    assert np.isnan(outside).all()
    fisheye = Camera("SIMPLE_RADIAL_FISHEYE", 640, 480, (100, 319.5, 239.5, 0.0))
    inside, outside = fisheye.normalise([[319.5 + 156, 239.5], [319.5 + 158, 239.5]])  # 90 degrees at 157.08
    assert inside[0] == pytest.approx(np.tan(1.56)) and np.isnan(outside).all()


def test_points_behind_are_nan() -> None:
    assert np.isnan(CAMERAS[0].project([[0, 0, -1], [1, 1, 0], [np.nan, 0, 1]])).any(axis=1).all()


@given(st.floats(-0.3, 0.5), st.floats(-0.1, 0.1), st.floats(-0.01, 0.01), st.integers(0, 1000))
def test_round_trip_or_nan(k1: float, k2: float, p1: float, seed: int) -> None:
    """Whatever the distortion, an answer is right or nan, and the middle of the image has one."""
    camera = Camera("OPENCV", 640, 480, (600, 600, 319.5, 239.5, k1, k2, p1, -p1))
    pixels = np.random.default_rng(seed).uniform([0, 0], [639, 479], (20, 2))
    rays = camera.normalise(pixels)
    good = ~np.isnan(rays).any(axis=1)
    np.testing.assert_allclose(camera.project(on_plane(rays))[good], pixels[good], atol=1e-5)
    assert good[np.linalg.norm(pixels - [319.5, 239.5], axis=1) < 150].all()


@pytest.mark.parametrize("rows", [0, 1])
@all_models
def test_few_points(camera: Camera, rows: int) -> None:
    assert camera.normalise(np.zeros((rows, 2))).shape == (rows, 2)
    assert camera.project(np.ones((rows, 3))).shape == (rows, 2)


@all_models
def test_nan_pixels_stay_nan(camera: Camera) -> None:
    rays = camera.normalise([[np.nan, 3], [310, 200], [np.inf, 0]])
    assert np.isfinite(rays[1]).all()
    assert not np.isfinite(rays[0]).all() and not np.isfinite(rays[2]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("PINHOLE_CAMERA", 640, 480, (1, 2, 3)), "no camera model is called 'PINHOLE_CAMERA'"),
        (("PINHOLE", 640, 480, (1, 2, 3)), r"PINHOLE takes 4 parameters \(fx, fy, cx, cy\), not 3"),
        (("SIMPLE_PINHOLE", 640, 480, (-500, 2, 3)), "focal lengths positive"),
        (("SIMPLE_PINHOLE", 640, 480, (np.nan, 2, 3)), "must be finite"),
        (("SIMPLE_PINHOLE", 0, 480, (500, 2, 3)), "at least 1x1"),
    ],
)
def test_impossible_cameras_are_refused(arguments, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Camera(*arguments)
    with pytest.raises(ArgumentError, match="points must have shape"):
        CAMERAS[0].project([[1, 2]])
