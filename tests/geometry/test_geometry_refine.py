"""The final fit by covariances: the minimum that SciPy finds too, nearer to the truth; their scale does not count."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, minimize
from scipy.spatial.transform import Rotation
from scipy.stats import multivariate_normal

from tiepoint import features, matchers
from tiepoint.errors import ArgumentError
from tiepoint.geometry import (
    Camera,
    corner_error,
    essential_from_pose,
    estimate_homography,
    estimate_relative_pose,
    pose_error,
    transform,
)
from tiepoint.geometry.refine import refine_homography, refine_pose
from tiepoint.matchers.base import make_matches

SIZE = 1000, 750
CAMERA = Camera("SIMPLE_RADIAL", *SIZE, (800, 499.5, 374.5, -0.05))
H = np.array([[0.9, 0.2, 30.0], [-0.1, 1.1, -12.0], [2e-4, -1e-4, 1.0]])


def covariances(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return covariances (K, 2, 2): a third of the points ten times less precise, and most along one direction."""
    angle = rng.uniform(0, np.pi, count)
    axes = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1).reshape(-1, 2, 2)
    sigma = np.where(rng.random(count) < 0.3, 1.0, 0.1)[:, None] * [1.0, 0.3]
    return axes @ (sigma[..., None] ** 2 * np.eye(2)) @ axes.transpose(0, 2, 1)


def blurred(rng: np.random.Generator, points: np.ndarray, S: np.ndarray) -> np.ndarray:
    return points + (np.linalg.cholesky(S) @ rng.normal(size=(*points.shape, 1)))[..., 0]


def flat_scene(seed: int, count: int = 200):
    rng = np.random.default_rng(seed)
    p0 = rng.uniform([0, 0], SIZE, (count, 2))
    S0, S1 = covariances(rng, count), covariances(rng, count)
    return blurred(rng, p0, S0), blurred(rng, transform(H, p0), S1), (S0, S1)


def deep_scene(seed: int, count: int = 200):
    rng = np.random.default_rng(seed)
    scene = rng.uniform([-2, -1.5, 3], [2, 1.5, 8], (count, 3))
    R, t = cv2.Rodrigues(rng.normal(0, 0.15, 3))[0], rng.normal(0, 1, 3) * [1, 0.5, 0.3]
    S0, S1 = covariances(rng, count), covariances(rng, count)
    p0, p1 = CAMERA.project(scene), CAMERA.project(scene @ R.T + t)
    return R, t / np.linalg.norm(t), blurred(rng, p0, S0), blurred(rng, p1, S1), (S0, S1)


def cauchy_scale(errors: np.ndarray) -> float:
    """Return the scale of the loss for errors (K, D) at the start, as `tiepoint.geometry.refine` takes it."""
    return 2 * float(np.sqrt(np.median((errors**2).sum(1))))


def likeliest(S0: np.ndarray, S1: np.ndarray, start: Any, residuals: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariances with the noise that all points share, by SciPy's densities at their best scale."""

    def density(S: tuple[np.ndarray, np.ndarray]) -> float:
        off, spread = residuals(start, *S)
        scale = np.mean([o @ np.linalg.inv(C) @ o for o, C in zip(off, spread, strict=True)]) / off.shape[1]
        return sum(multivariate_normal.logpdf(o, cov=scale * C) for o, C in zip(off, spread, strict=True))

    shares = np.array([0, 0.03, 0.1, 0.3, 1, 3, 10, 30])[:, None, None, None]
    mean0, mean1 = (np.eye(2) * np.linalg.eigvalsh(S).mean() for S in (S0, S1))
    return max(zip(S0 + shares * mean0, S1 + shares * mean1, strict=True), key=density)


def distances(offsets: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return Mahalanobis distances."""
    return np.sqrt(np.einsum("ni,nij,nj->n", offsets, np.linalg.inv(spread), offsets))


def test_homography_is_at_the_minimum_that_scipy_finds():
    p0, p1, S = flat_scene(1)
    start = estimate_homography(p0, p1).model

    corners = np.array([[0, 0], [SIZE[0], 0], SIZE, [0, SIZE[1]]], np.float32)
    there = transform(start, corners)

    def moved(shift: np.ndarray) -> np.ndarray:
        return cv2.getPerspectiveTransform(corners, (there + shift.reshape(4, 2)).astype(np.float32)).astype(float)

    def residuals(shift: np.ndarray, S0: np.ndarray, S1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and their covariances, with derivatives of the map by differences of the map itself."""
        G = moved(shift)
        J = np.stack([(transform(G, p0 + e) - transform(G, p0 - e)) / 2e-3 for e in 1e-3 * np.eye(2)], 2)
        return transform(G, p0) - p1, J @ S0 @ J.transpose(0, 2, 1) + S1

    likely = likeliest(*S, np.zeros(8), residuals)
    scale = cauchy_scale(distances(*residuals(np.zeros(8), *likely))[:, None])
    found = minimize(
        lambda shift: np.log1p((distances(*residuals(shift, *likely)) / scale) ** 2).sum(), np.zeros(8), method="Powell"
    )
    ours = refine_homography(start, p0, p1, S)
    assert corner_error(ours, moved(found.x), SIZE) < 5e-3
    assert corner_error(start, ours, SIZE) > 0.05  # and it was not there before


def test_pose_is_at_the_minimum_that_scipy_finds():
    _, _, p0, p1, S = deep_scene(2)
    start = estimate_relative_pose(p0, p1, CAMERA, CAMERA)
    # a camera of focal length 1 without distortion
    x0, x1 = CAMERA.normalise(p0), CAMERA.normalise(p1)
    S0, S1 = (one / 800**2 for one in S)

    def split(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return Rotation.from_rotvec(v[:3]).as_matrix(), v[3:] / np.linalg.norm(v[3:])

    def residuals(v: np.ndarray, S0: np.ndarray, S1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sampson's distance with each point's covariance: the first-order distance from x1^T E x0 = 0."""
        E = essential_from_pose(*split(v))
        joint = np.zeros((len(x0), 4, 4))
        joint[:, :2, :2], joint[:, 2:, 2:] = S0, S1
        h0, h1 = (np.column_stack([x, np.ones(len(x))]) for x in (x0, x1))
        g = np.hstack([(h1 @ E)[:, :2], (h0 @ E.T)[:, :2]])
        return np.einsum("ni,ij,nj->n", h1, E, h0)[:, None], np.einsum("ni,nij,nj->n", g, joint, g)[:, None, None]

    first = np.append(Rotation.from_matrix(start.R).as_rotvec(), start.t)
    likely = likeliest(S0, S1, first, residuals)

    def errors(v: np.ndarray) -> np.ndarray:
        return distances(*residuals(v, *likely))

    found = least_squares(
        errors, first, loss="cauchy", f_scale=cauchy_scale(errors(first)[:, None]), xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    R, t = refine_pose(start.R, start.t, x0, x1, (S0, S1))
    assert np.rad2deg(max(pose_error(R, t, *split(found.x)))) < 2e-3
    assert np.rad2deg(max(pose_error(R, t, start.R, start.t))) > 0.01


def test_weighting_comes_nearer_to_the_truth():
    """Over many draws of noise with these covariances, the mean error falls by far."""
    plain, weighted = [], []
    for seed in range(20):
        p0, p1, S = flat_scene(seed)
        for told, errors in ((None, plain), (S, weighted)):
            errors.append(corner_error(estimate_homography(p0, p1, covariances=told).model, H, SIZE))
    assert np.mean(weighted) < 0.6 * np.mean(plain)

    plain, weighted = [], []
    for seed in range(20):
        R, t, p0, p1, S = deep_scene(seed)
        for told, errors in ((None, plain), (S, weighted)):
            found = estimate_relative_pose(p0, p1, CAMERA, CAMERA, covariances=told)
            errors.append(max(pose_error(found.R, found.t, R, t)))
    assert np.mean(weighted) < 0.6 * np.mean(plain)


def test_what_was_not_foreseen_makes_points_count_alike():
    """Under noise ten times that predicted, and the same for all, predictions must not do harm."""
    foreseen, equal = [], []
    for seed in range(20):
        p0, p1, S = flat_scene(seed)
        p1 = p1 + np.random.default_rng(seed).normal(size=p1.shape)
        small = tuple(one / 100 for one in S)
        for told, errors in ((small, foreseen), ((S[0] * 0 + np.eye(2),) * 2, equal)):
            errors.append(corner_error(estimate_homography(p0, p1, covariances=told).model, H, SIZE))
    assert np.mean(foreseen) < 1.03 * np.mean(equal)


def test_only_ratios_count_and_outliers_have_no_say():
    p0, p1, (S0, S1) = flat_scene(3)
    p1[:60] = p1[:60][::-1]  # outliers, which claim to be the most precise of all
    p0[60] = np.nan
    S0[:60] /= 1e4
    S1[:60] /= 1e4
    found = estimate_homography(p0, p1, covariances=(S0, S1))
    scaled = estimate_homography(p0, p1, covariances=(100 * S0, 100 * S1))
    np.testing.assert_allclose(found.model, scaled.model, rtol=1e-6, atol=1e-9)
    assert corner_error(found.model, H, SIZE) < 0.3
    assert not found.inliers[60] and found.inliers[:60].sum() < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda S: S[1:], "99, for 100 matches"),
        (lambda S: S[:, 0], "must have shape"),
        (lambda S: 0 * S, "positive definite"),
        (lambda S: S * np.nan, "finite"),
    ],
)
def test_bad_covariances_are_named(change, message):
    p0, p1, (S0, S1) = flat_scene(4, 100)
    with pytest.raises(ArgumentError, match=f"image 1.*{message}"):
        estimate_homography(p0, p1, covariances=(S0, change(S1)))
    with pytest.raises(ArgumentError, match=f"image 1.*{message}"):
        estimate_relative_pose(p0, p1, CAMERA, CAMERA, covariances=(S0, change(S1)))
    with pytest.raises(ArgumentError, match=f"image 1.*{message}"):  # also where there is no model to be found
        estimate_homography(0 * p0, p1, covariances=(S0, change(S1)))


def test_matches_carry_the_covariances_of_their_keypoints():
    noise = np.kron(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8), np.ones((5, 5), np.uint8))
    f0, f1 = features.load("cairn", max_keypoints=100).extract_many([noise, noise[10:, 15:]])
    pair = make_matches(f0, f1, np.array([[1, 4], [3, 2], [7, 0]]), np.ones(3, np.float32))
    for part, f, rows in zip(pair.covariances, (f0, f1), ([1, 3, 7], [4, 2, 0]), strict=True):
        np.testing.assert_array_equal(part, f.covariances[torch.tensor(rows)].numpy())
    back = pair.swapped()
    np.testing.assert_array_equal(back.covariances[0], f1.covariances[torch.tensor([0, 2, 4])].numpy())
    np.testing.assert_array_equal(back.covariances[1], f0.covariances[torch.tensor([7, 3, 1])].numpy())
    for name in ("nearest", "lightglue"):
        found = matchers.load(name, features="cairn")(f0, f1)
        i, j = torch.from_numpy(found.indices.T)
        np.testing.assert_array_equal(found.covariances[0], f0.covariances[i].numpy())
        np.testing.assert_array_equal(found.covariances[1], f1.covariances[j].numpy())
    sift = features.load("sift", max_keypoints=100)
    s0, s1 = (sift(image) for image in (noise, noise[10:, 15:]))
    assert matchers.load("nearest")(s0, s1).covariances is None
