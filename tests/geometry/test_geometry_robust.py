"""Robust estimation: known scenes with outliers, real photographs, and all that determines no model."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiepoint.errors import ArgumentError
from tiepoint.geometry import (
    Camera,
    Estimate,
    corner_error,
    essential_from_pose,
    estimate_fundamental,
    estimate_homography,
    estimate_relative_pose,
    fundamental_from_pose,
    pose_error,
    reprojection_error,
    sampson_error,
    symmetric_epipolar_error,
    transform,
)

SIZE = 1000, 750
DISTORTED = Camera("SIMPLE_RADIAL", *SIZE, (800, 499.5, 374.5, -0.05))
PINHOLE = Camera.from_focal(900, SIZE)
H = np.array([[0.9, 0.2, 30.0], [-0.1, 1.1, -12.0], [2e-4, -1e-4, 1.0]])
methods = pytest.mark.parametrize("method", ["poselib", "magsac"])


def homography(points0, points1, **options) -> Estimate:
    return estimate_homography(points0, points1, **options)


def fundamental(points0, points1, **options) -> Estimate:
    return estimate_fundamental(points0, points1, **options)


def pose(points0, points1, **options) -> Estimate:
    return estimate_relative_pose(points0, points1, DISTORTED, PINHOLE, **options)


estimators = pytest.mark.parametrize("estimate", [homography, fundamental, pose])


def two_views(seed: int, count: int = 300, outliers: float = 0.5, noise: float = 0.5, camera0: Camera = DISTORTED):
    """Return R, t, matches in pixels of ``camera0`` and PINHOLE, and which of them are true."""
    rng = np.random.default_rng(seed)
    scene = rng.uniform([-2, -1.5, 3], [2, 1.5, 8], (count, 3))
    R = cv2.Rodrigues(rng.normal(0, 0.15, 3))[0]
    t = rng.normal(0, 1, 3) * [1, 0.5, 0.3]
    p0 = camera0.project(scene) + rng.normal(0, noise, (count, 2))
    p1 = PINHOLE.project(scene @ R.T + t) + rng.normal(0, noise, (count, 2))
    true = np.arange(count) >= outliers * count
    p1[~true] = rng.uniform([0, 0], SIZE, (count - true.sum(), 2))
    return R, t, p0, p1, true


def nothing_found(found: Estimate, count: int) -> bool:
    return (
        found.model is None
        and found.R is None
        and found.t is None
        and found.inliers.dtype == bool
        and found.inliers.shape == (count,)
        and not found.inliers.any()
    )


@methods
@pytest.mark.parametrize("seed", range(5))
def test_homography_with_half_outliers(method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p0 = rng.uniform([0, 0], SIZE, (300, 2))
    p1 = transform(H, p0) + rng.normal(0, 0.5, (300, 2))
    p1[:150] = rng.uniform([0, 0], SIZE, (150, 2))
    found = estimate_homography(p0, p1, method=method)
    assert found.model is not None and found.model.dtype == np.float64 and found.model[2, 2] == 1
    assert corner_error(found.model, H, SIZE) < 0.5
    assert found.inliers[150:].mean() > 0.98 and found.inliers[:150].mean() < 0.05
    # The mask says what it promises, of the model that is returned.
    np.testing.assert_array_equal(found.inliers, reprojection_error(found.model, p0, p1) <= 3)


@methods
@pytest.mark.parametrize("seed", range(5))
def test_relative_pose_with_half_outliers(method: str, seed: int) -> None:
    R, t, p0, p1, true = two_views(seed)
    found = estimate_relative_pose(p0, p1, DISTORTED, PINHOLE, threshold=1.5, method=method)
    assert found.R is not None and found.t is not None
    assert np.degrees(max(pose_error(found.R, found.t, R, t))) < 1.5
    assert found.t @ t > 0, "in front of the cameras, not behind"
    assert found.inliers[true].mean() > 0.95 and found.inliers[~true].mean() < 0.1
    np.testing.assert_allclose(found.R @ found.R.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(found.R) > 0 and np.linalg.norm(found.t) == pytest.approx(1)
    np.testing.assert_allclose(found.model, essential_from_pose(found.R, found.t))
    pixel = (1 / 800 + 1 / 900) / 2
    error = sampson_error(found.model, DISTORTED.normalise(p0), PINHOLE.normalise(p1))
    np.testing.assert_array_equal(found.inliers, error <= 1.5 * pixel)


@methods
@pytest.mark.parametrize("seed", range(5))
def test_fundamental_with_half_outliers(method: str, seed: int) -> None:
    camera = Camera.from_focal(800, SIZE)
    R, t, p0, p1, true = two_views(seed, camera0=camera)
    found = estimate_fundamental(p0, p1, threshold=1.5, method=method)
    assert found.model is not None and np.linalg.norm(found.model) == pytest.approx(1)
    assert abs(np.linalg.det(found.model)) < 1e-12
    best = symmetric_epipolar_error(fundamental_from_pose(camera.K, PINHOLE.K, R, t), p0, p1)[true]
    assert np.median(symmetric_epipolar_error(found.model, p0, p1)[true]) < 1.3 * np.median(best)
    assert found.inliers[true].mean() > 0.95 and found.inliers[~true].mean() < 0.1
    np.testing.assert_array_equal(found.inliers, sampson_error(found.model, p0, p1) <= 1.5)


@methods
def test_exact_matches_give_the_exact_model(method: str) -> None:
    R, t, p0, p1, _ = two_views(1, outliers=0, noise=0)
    found = estimate_relative_pose(p0, p1, DISTORTED, PINHOLE, method=method)
    assert max(pose_error(found.R, found.t, R, t)) < 1e-3
    found = estimate_homography(p0, transform(H, p0), method=method)
    assert corner_error(found.model, H, SIZE) < 1e-2


def test_poselib_is_not_told_apart_from_its_own_interface() -> None:
    """Calibrating the points here and letting PoseLib do it are the same estimation."""
    poselib = pytest.importorskip("poselib")
    _, _, p0, p1, _ = two_views(3, camera0=PINHOLE)
    found = estimate_relative_pose(p0, p1, PINHOLE, PINHOLE)
    camera = {"model": "SIMPLE_PINHOLE", "width": 1000, "height": 750, "params": list(PINHOLE.params)}
    options = {"max_epipolar_error": 1.0, "success_prob": 0.9999, "max_iterations": 10_000, "seed": 0}
    theirs = poselib.estimate_relative_pose(p0, p1, camera, camera, options, {"loss_scale": 0.5})[0]
    assert max(pose_error(found.R, found.t, theirs.R, theirs.t)) < 1e-6


@methods
@estimators
def test_a_seed_determines_the_result(estimate, method: str) -> None:
    _, _, p0, p1, _ = two_views(0)
    first, again = (estimate(p0, p1, method=method, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.model, again.model)
    np.testing.assert_array_equal(first.inliers, again.inliers)


@methods
def test_seeds_matter(method: str) -> None:
    _, _, p0, p1, _ = two_views(0, outliers=0.7)
    models = [estimate_relative_pose(p0, p1, DISTORTED, PINHOLE, method=method, seed=s).model for s in range(4)]
    assert any(not np.array_equal(models[0], model) for model in models[1:])


@methods
@estimators
def test_rows_that_are_not_numbers_are_outliers(estimate, method: str) -> None:
    _, _, p0, p1, _ = two_views(0, outliers=0.2)
    bad = np.array([10, 100, 150, 299])
    clean = np.delete(np.arange(300), bad)
    expected = estimate(p0[clean], p1[clean], method=method)
    p0[10], p1[100, 1], p0[150], p1[299] = np.nan, np.inf, -np.inf, 1e300
    found = estimate(p0, p1, method=method)
    np.testing.assert_array_equal(found.model, expected.model)
    np.testing.assert_array_equal(found.inliers[clean], expected.inliers)
    assert not found.inliers[bad].any()


def _line(slope: float, shift: float, count: int = 40) -> np.ndarray:
    x = np.linspace(50, 700, count)
    return np.column_stack([x, slope * x + shift])


GRID = np.stack(np.meshgrid(np.linspace(0, 900, 10), np.linspace(0, 700, 10)), -1).reshape(-1, 2)
DEGENERATE = {
    "no rows": (np.zeros((0, 2)), np.zeros((0, 2))),
    "one row": (np.zeros((1, 2)), np.zeros((1, 2))),
    "a minimal sample": (GRID[[0, 9, 90, 99]], GRID[[0, 9, 90, 99]] + 5),
    "all the same": (np.full((50, 2), 100.0), np.full((50, 2), 200.0)),
    "all zero": (np.zeros((50, 2)), np.zeros((50, 2))),
    "the same in image 0": (np.full((100, 2), 100.0), GRID),
    "the same in image 1": (GRID, np.full((100, 2), 100.0)),
    "three distinct": (np.tile(GRID[[0, 9, 90]], (20, 1)), np.tile(GRID[[0, 9, 90]], (20, 1)) + 7),
    "four distinct": (np.tile(GRID[[0, 9, 90, 99]], (20, 1)), np.tile(GRID[[0, 9, 90, 99]], (20, 1)) + 7),
    "collinear": (_line(0.5, 10), _line(-0.2, 300)),
    "collinear, integers": (
        np.column_stack([np.arange(40), np.arange(40)]),
        np.column_stack([np.arange(40)] * 2),
    ),
    "collinear in image 1": (GRID, np.column_stack([GRID[:, 0], GRID[:, 0]])),
    "vertical": (_line(0.5, 10)[:, :1] * [0, 1], _line(0.5, 10)[:, :1] * [0, 1]),
    "collinear but one": (
        np.vstack([_line(0.5, 10), [[600, 10]]]),
        np.vstack([_line(-0.2, 300), [[300, 20]]]),
    ),
    "nan": (np.full((50, 2), np.nan), np.full((50, 2), np.nan)),
    "inf": (np.full((50, 2), np.inf), np.full((50, 2), -np.inf)),
    "huge": (np.full((50, 2), 1e300) * np.linspace(-1, 1, 50)[:, None], GRID[:50]),
    "tiny": (GRID * 1e-300, GRID * 1e-300),
    "half nan": (np.where(np.arange(100)[:, None] > 2, np.nan, GRID), GRID),
}


@methods
@estimators
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_matches_determine_no_model(estimate, method: str, case: str) -> None:
    p0, p1 = DEGENERATE[case]
    assert nothing_found(estimate(p0, p1, method=method), len(p0))
    assert nothing_found(estimate(p1, p0, method=method), len(p0))


@methods
@pytest.mark.parametrize("seed", range(3))
def test_noisy_lines_determine_no_homography(method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p0, p1 = (line + rng.normal(0, 0.5, line.shape) for line in (_line(0.5, 10), _line(-0.2, 300)))
    assert nothing_found(estimate_homography(p0, p1, method=method), 40)
    p0[7], p1[7] = (600, 10), (300, 20)
    assert nothing_found(estimate_homography(p0, p1, method=method), 40)


@methods
def test_mirrored_points_have_no_homography(method: str, rng) -> None:
    p0 = rng.uniform([0, 0], SIZE, (100, 2))
    mirror = np.diag([-1.0, 1, 1])
    assert nothing_found(estimate_homography(p0, transform(H @ mirror, p0), method=method), 100)


@methods
def test_points_beyond_the_horizon_are_outliers(method: str, rng) -> None:
    """A plane seen at a grazing angle: what lies behind the camera cannot have been photographed."""
    steep = np.array([[1, 0, 0], [0, 1, 0], [-1 / 600, 0, 1]])  # the line x = 600 goes to infinity
    p0 = np.concatenate([rng.uniform([0, 0], [500, 750], (200, 2)), rng.uniform([700, 0], SIZE, (40, 2))])
    found = estimate_homography(p0, transform(steep, p0), method=method)
    assert corner_error(found.model, steep, (500, 750)) < 0.1
    assert found.inliers[:200].all() and not found.inliers[200:].any()


@methods
def test_two_copies_of_a_photograph_have_no_relative_pose(method: str, rng) -> None:
    """Without motion no direction of it exists, and a pose would only pretend to one."""
    p = rng.uniform([0, 0], SIZE, (200, 2))
    assert nothing_found(estimate_relative_pose(p, p, PINHOLE, PINHOLE, method=method), 200)
    assert estimate_homography(p, p, method=method).inliers.all()


@methods
@estimators
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_input_gives_a_sound_estimate(estimate, method: str, data) -> None:
    """Few, repeated, structured or wild coordinates: a finite model with enough inliers, or none."""
    count = data.draw(st.integers(0, 14))
    coordinate = st.one_of(
        st.integers(-2, 3).map(float),
        st.floats(-1e6, 1e6),
        st.sampled_from([np.nan, np.inf, 1e-300, 1e300, 1e7, 319.5]),
    )
    p0, p1 = (
        np.array(data.draw(st.lists(coordinate, min_size=2 * count, max_size=2 * count))).reshape(-1, 2)
        for _ in range(2)
    )
    found = estimate(p0, p1, method=method, max_iterations=200)
    if found.model is None:
        assert nothing_found(found, count)
    else:
        assert np.isfinite(found.model).all() and np.linalg.norm(found.model) > 0
        assert found.inliers.sum() >= {homography: 5, fundamental: 8, pose: 6}[estimate]


@estimators
def test_wrong_arguments_are_named(estimate) -> None:
    points = np.zeros((20, 2))
    for arguments, message in [
        ((np.zeros((20, 3)), points), r"points0 must have shape \(N, 2\)"),
        ((points, points[:5]), "20 and 5 rows"),
        ((np.zeros(20), points), "points0 must have shape"),
        (([["a", "b"]], points), "points0 must be an array of numbers"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            estimate(*arguments)
    for option in (
        {"threshold": 0},
        {"threshold": np.nan},
        {"method": "ransac"},
        {"confidence": 1.0},
        {"max_iterations": 0},
        {"seed": -1},
    ):
        with pytest.raises(ArgumentError, match=next(iter(option))):
            estimate(points, points, **option)


def _sift_matches(folder: Path, pair: dict) -> tuple[np.ndarray, np.ndarray]:
    sift = cv2.SIFT_create(2000)
    points, descriptors = [], []
    for name in (pair["image0"], pair["image1"]):
        image = cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
        keypoints, description = sift.detectAndCompute(image, None)
        points.append(np.array([k.pt for k in keypoints]))
        descriptors.append(description)
    found = [a for a, b in cv2.BFMatcher().knnMatch(*descriptors, k=2) if a.distance < 0.75 * b.distance]
    return points[0][[m.queryIdx for m in found]], points[1][[m.trainIdx for m in found]]


@pytest.fixture(scope="module")
def graf(data_dir: Path):
    pair = json.loads((data_dir / "eval/graf/pairs.json").read_text())["pairs"][0]
    return np.array(pair["H"]), *_sift_matches(data_dir / "eval/graf", pair)


@pytest.fixture(scope="module")
def fountain(data_dir: Path):
    pair = json.loads((data_dir / "eval/fountain/pairs.json").read_text())["pairs"][0]
    return pair, *_sift_matches(data_dir / "eval/fountain", pair)


@methods
def test_graf_is_recovered(graf, method: str) -> None:
    true, p0, p1 = graf
    assert np.median(reprojection_error(true, p0, p1)) < 1.5
    found = estimate_homography(p0, p1, method=method)
    assert corner_error(found.model, true, (800, 640)) < 2
    right = reprojection_error(true, p0, p1) < 3
    assert (found.inliers == right).mean() > 0.9


@methods
def test_fountain_is_recovered(fountain, method: str) -> None:
    true, p0, p1 = fountain
    F = fundamental_from_pose(true["K0"], true["K1"], true["R"], true["t"])
    error = symmetric_epipolar_error(F, p0, p1)
    assert np.median(error) < 0.5
    cameras = (Camera.from_K(true[k], (1200, 800)) for k in ("K0", "K1"))
    found = estimate_relative_pose(p0, p1, *cameras, method=method)
    assert np.degrees(max(pose_error(found.R, found.t, true["R"], true["t"]))) < 1
    assert (error[found.inliers] < 3).mean() > 0.95
    found = estimate_fundamental(p0, p1, method=method)
    assert np.median(symmetric_epipolar_error(found.model, p0, p1)[error < 1]) < 0.5
