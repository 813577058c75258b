"""Homographies: closed forms, OpenCV, and properties."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiepoint.errors import ArgumentError
from tiepoint.geometry import corner_error, estimate_dlt, reprojection_error, symmetric_transfer_error, transform

H = np.array([[0.9, 0.2, 30.0], [-0.1, 1.1, -12.0], [2e-4, -1e-4, 1.0]])
seeds = st.integers(0, 2**32 - 1)


def random_homography(rng: np.random.Generator) -> np.ndarray:
    """One that moves the corners of a 640x480 image by up to 100 pixels."""
    corners = np.array([[0, 0], [640, 0], [640, 480], [0, 480]], np.float32)
    return cv2.getPerspectiveTransform(corners, corners + rng.uniform(-100, 100, (4, 2)).astype(np.float32))


def test_transform_is_opencvs(rng) -> None:
    points = rng.uniform(0, 500, (50, 2))
    np.testing.assert_allclose(transform(H, points), cv2.perspectiveTransform(points[None], H)[0], rtol=1e-12)
    np.testing.assert_allclose(transform(-3 * H, points), transform(H, points), rtol=1e-12)


def test_points_on_the_horizon_go_to_infinity() -> None:
    to_infinity = np.array([[1, 0, 0], [0, 1, 0], [1, 0, -5]])
    assert not np.isfinite(transform(to_infinity, [[5, 1]])).any()
    assert reprojection_error(to_infinity, [[5, 0]], [[0, 0]]) == np.inf


@given(seeds)
def test_dlt_recovers_an_exact_homography(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = random_homography(rng)
    points = rng.uniform(0, 640, (int(rng.integers(6, 40)), 2))
    found = estimate_dlt(points, transform(true, points))
    assert found is not None and found[2, 2] == 1
    assert corner_error(found, true, (640, 480)) < 1e-6


@given(seeds)
def test_dlt_of_four_points_is_opencvs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0], [640, 0], [640, 480], [0, 480]], np.float32)
    moved = corners + rng.uniform(-100, 100, (4, 2)).astype(np.float32)
    found = estimate_dlt(corners, moved)
    assert found is not None
    assert corner_error(found, cv2.getPerspectiveTransform(corners, moved), (640, 480)) < 1e-4


@given(seeds, st.floats(0.1, 10), st.floats(-1000, 1000))
def test_dlt_does_not_depend_on_the_frame(seed: int, scale: float, shift: float) -> None:
    """Hartley's point: moving and scaling the coordinates changes nothing but the coordinates."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 500, (20, 2))
    moved = transform(random_homography(rng), points) + rng.normal(0, 1, points.shape)
    plain = estimate_dlt(points, moved)
    other = estimate_dlt(points * scale + shift, moved * scale - shift)
    assert plain is not None and other is not None
    expected = transform(plain, points) * scale - shift
    np.testing.assert_allclose(transform(other, points * scale + shift), expected, atol=1e-5)


def test_dlt_with_noise_is_near_the_optimum(rng) -> None:
    points = rng.uniform(0, 600, (200, 2))
    moved = transform(H, points) + rng.normal(0, 1, points.shape)
    found = estimate_dlt(points, moved)
    best = cv2.findHomography(points, moved)[0]  # DLT and then Levenberg-Marquardt
    assert reprojection_error(found, points, moved).mean() < 1.01 * reprojection_error(best, points, moved).mean()


def test_weights_count(rng) -> None:
    points = rng.uniform(0, 600, (30, 2))
    moved = transform(H, points)
    moved[:10] += 50
    weights = np.ones(30)
    weights[:10] = 0
    assert corner_error(estimate_dlt(points, moved, weights), H, (600, 600)) < 1e-6
    assert corner_error(estimate_dlt(points, moved), H, (600, 600)) > 1
    doubled = np.concatenate([points, points[:15]]), np.concatenate([moved, moved[:15]])
    weights = np.repeat([2.0, 1.0], 15)
    np.testing.assert_allclose(estimate_dlt(points, moved, weights), estimate_dlt(*doubled), rtol=1e-8)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 2)),
        np.eye(3)[:, :2],
        np.full((10, 2), 7.0),
        np.outer(np.arange(10), [3.0, 4.0]),
        np.vstack([np.outer(np.arange(10), [3.0, 4.0]), [[50, 0]]]),
        np.array([[0, 0], [1, 0], [2, 0], [0, 9]]),
        np.array([[0, 0], [1, 0], [1, 1], [0, 1], [np.nan, 2]]),
        np.array([[0, 0], [1, 0], [1, 1], [0, 1], [np.inf, 2]]),
    ],
)
def test_dlt_of_undetermined_points_is_none(points) -> None:
    assert estimate_dlt(points, 2 * points + 4) is None


def test_errors_in_closed_form() -> None:
    double = np.diag([2.0, 2.0, 1.0])
    assert reprojection_error(double, [[1, 1]], [[5, 6]]) == pytest.approx([5])
    assert symmetric_transfer_error(double, [[1, 1]], [[5, 6]]) == pytest.approx([3.75])  # 5 there, 2.5 back
    assert symmetric_transfer_error(np.zeros((3, 3)), [[1, 1]], [[5, 6]]) == [np.inf]
    # A scaling about pixel (0, 0) moves the far corner (99.5, 49.5) by itself, and so on.
    expected = np.mean([np.hypot(x, y) for x in (-0.5, 99.5) for y in (-0.5, 49.5)])
    assert corner_error(double, np.eye(3), (100, 50)) == pytest.approx(expected)


@given(seeds)
def test_symmetric_error_is_symmetric(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, (p0, p1) = random_homography(rng), rng.uniform(0, 400, (2, 8, 2))
    forward = symmetric_transfer_error(true, p0, p1)
    np.testing.assert_allclose(forward, symmetric_transfer_error(np.linalg.inv(true), p1, p0), rtol=1e-6)


@pytest.mark.parametrize(
    ("points0", "points1", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), r"points0 must have shape \(N, 2\), not \(4, 3\)"),
        (np.zeros((4, 2)), np.zeros((5, 2)), "4 and 5 rows"),
        (np.zeros(4), np.zeros((4, 2)), "points0 must have shape"),
        ("four", np.zeros((4, 2)), "points0 must be an array of numbers"),
    ],
)
def test_wrong_shapes_are_named(points0, points1, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        estimate_dlt(points0, points1)
    with pytest.raises(ArgumentError, match=message):
        reprojection_error(np.eye(3), points0, points1)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ArgumentError, match="weights must be 5 numbers"):
        estimate_dlt(np.zeros((5, 2)), np.zeros((5, 2)), [-1, 1, 1, 1, 1])
