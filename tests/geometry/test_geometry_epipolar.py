"""Epipolar geometry: closed forms, OpenCV, and properties."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from tiepoint.geometry import (
    essential_from_pose,
    fundamental_from_pose,
    pose_error,
    relative_pose,
    sampson_error,
    symmetric_epipolar_error,
)

seeds = st.integers(0, 2**32 - 1)
K0 = np.array([[800.0, 0, 320], [0, 820, 240], [0, 0, 1]])
K1 = np.array([[600.0, 0, 400], [0, 590, 300], [0, 0, 1]])


def rotation(vector) -> np.ndarray:
    return cv2.Rodrigues(np.asarray(vector, float))[0]


def two_views(rng: np.random.Generator, count: int = 20):
    """Return R, t and exact matches in pixels of K0 and K1."""
    scene = rng.uniform([-2, -2, 4], [2, 2, 9], (count, 3))
    R, t = rotation(rng.normal(0, 0.2, 3)), rng.normal(0, 1, 3)
    x0, x1 = scene @ K0.T, (scene @ R.T + t) @ K1.T
    return R, t, x0[:, :2] / x0[:, 2:], x1[:, :2] / x1[:, 2:]


@given(seeds)
def test_true_matches_have_no_error(seed: int) -> None:
    R, t, p0, p1 = two_views(np.random.default_rng(seed))
    F = fundamental_from_pose(K0, K1, R, t)
    assert np.linalg.norm(F) == pytest.approx(1)
    assert sampson_error(F, p0, p1).max() < 1e-6
    assert symmetric_epipolar_error(F, p0, p1).max() < 1e-6


@given(seeds)
def test_errors_do_not_depend_on_scale_or_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    R, t, p0, p1 = two_views(rng)
    p1 = p1 + rng.normal(0, 3, p1.shape)
    F = fundamental_from_pose(K0, K1, R, t)
    for error in (sampson_error, symmetric_epipolar_error):
        # A point next to its line: the difference of large numbers, rounded to 1e-13 of them, whatever it is itself.
        np.testing.assert_allclose(error(-7 * F, p0, p1), error(F, p0, p1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(error(F.T, p1, p0), error(F, p0, p1), rtol=1e-9, atol=1e-12)


def test_sampson_error_is_opencvs_squared(rng) -> None:
    R, t, p0, p1 = two_views(rng, 10)
    p1 += rng.normal(0, 5, p1.shape)
    F = fundamental_from_pose(K0, K1, R, t)
    expected = [cv2.sampsonDistance(np.array([*a, 1.0]), np.array([*b, 1.0]), F) for a, b in zip(p0, p1, strict=True)]
    np.testing.assert_allclose(sampson_error(F, p0, p1) ** 2, expected, rtol=1e-9)


def test_sampson_error_is_the_distance_to_the_nearest_exact_match(rng) -> None:
    """To first order, which noise of a pixel is."""
    R, t, p0, p1 = two_views(rng, 5)
    p1 += rng.normal(0, 1, p1.shape)
    F = fundamental_from_pose(K0, K1, R, t)
    for a, b, error in zip(p0, p1, sampson_error(F, p0, p1), strict=True):
        observed = np.concatenate([a, b])
        constraint = {"type": "eq", "fun": lambda z: 1e3 * np.array([*z[2:], 1]) @ F @ np.array([*z[:2], 1])}
        nearest = minimize(lambda z, o=observed: ((z - o) ** 2).sum(), observed, constraints=constraint).x
        assert np.linalg.norm(nearest - observed) == pytest.approx(error, rel=0.01)


def test_symmetric_epipolar_error_is_the_distance_to_opencvs_lines(rng) -> None:
    R, t, p0, p1 = two_views(rng)
    p1 += rng.normal(0, 5, p1.shape)
    F = fundamental_from_pose(K0, K1, R, t)
    distances = []
    for which, (points, others) in enumerate([(p0, p1), (p1, p0)], 1):
        lines = cv2.computeCorrespondEpilines(points[:, None], which, F).reshape(-1, 3)  # of unit normal
        distances.append(np.abs((lines[:, :2] * others).sum(1) + lines[:, 2]))
    np.testing.assert_allclose(symmetric_epipolar_error(F, p0, p1), np.mean(distances, 0), rtol=1e-6)


def test_essential_matrix_decomposes_into_its_pose(rng) -> None:
    R, t = rotation([0.1, -0.2, 0.3]), np.array([1.0, 2.0, -0.5])
    R0, R1, direction = cv2.decomposeEssentialMat(essential_from_pose(R, t))
    assert min(np.abs(R0 - R).max(), np.abs(R1 - R).max()) < 1e-9
    assert abs(direction.ravel() @ t) / np.linalg.norm(t) == pytest.approx(1)


@given(seeds)
def test_relative_pose_carries_points_from_camera_to_camera(seed: int) -> None:
    rng = np.random.default_rng(seed)
    poses = [(rotation(rng.normal(0, 1, 3)), rng.normal(0, 1, 3)) for _ in range(2)]
    X = rng.normal(0, 1, 3)
    in_camera = [R @ X + t for R, t in poses]
    R, t = relative_pose(*poses)
    np.testing.assert_allclose(R @ in_camera[0] + t, in_camera[1], atol=1e-12)
    back = relative_pose(poses[1], poses[0])
    np.testing.assert_allclose(back[0] @ (R @ X + t) + back[1], X, atol=1e-12)


@given(seeds, st.floats(0, np.pi - 1e-3), st.floats(0, np.pi / 2), st.booleans())
def test_pose_error_measures_the_angles_put_in(seed: int, turn: float, tilt: float, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    R, t = rotation(rng.normal(0, 1, 3)), rng.normal(0, 1, 3)
    axis, across = rng.normal(0, 1, 3), np.cross(t, rng.normal(0, 1, 3))
    R_est = rotation(axis / np.linalg.norm(axis) * turn) @ R
    t_est = rotation(across / np.linalg.norm(across) * tilt) @ t * (-3 if flip else 3)
    errors = pose_error(R_est, t_est, R, t)
    assert errors == pytest.approx((turn, tilt), abs=1e-6)


def test_pose_error_without_a_direction() -> None:
    eye = np.eye(3)
    assert pose_error(eye, [1, 0, 0], eye, [0, 0, 0]) == (0, 0)
    assert pose_error(eye, [0, 0, 0], eye, [1, 0, 0]) == (0, np.pi / 2)


def test_small_angles_are_exact() -> None:
    assert pose_error(rotation([1e-9, 0, 0]), [1, 0, 0], np.eye(3), [1, 0, 0])[0] == pytest.approx(1e-9, rel=1e-6)
