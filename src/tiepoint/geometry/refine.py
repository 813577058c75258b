"""The final fit of a model to its inliers, where each match counts as much as its keypoints are precise.

An extractor that predicts covariances says of each keypoint how far off it may be, and in which direction. The error of
a match is divided by the standard deviation that the covariances of its two keypoints give it, and the sum of Cauchy's
losses of these is brought to a minimum by Gauss and Newton's method, starting from the model that robust estimation
found. Only the *ratios* of covariances count: the loss takes its scale from the errors themselves.

What an extractor cannot foresee, such as how a keypoint wanders when its surface is seen from the side, is noise that
all points of a pair have in common. Its share is estimated from the errors of the pair before the fit, by the largest
likelihood (variance components: Förstner and Wrobel, Photogrammetric Computer Vision, 2016, 4.2.4). Where predictions
explain the errors, weights stay as predicted; where they do not, all points come to count alike.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from ._arrays import Array, as_array, homogeneous
from .epipolar import essential_from_pose
from .homography import normalisation, scaled, transform

Pair = tuple[Array, Array]

_ROUNDS = 10
_GAIN = 1e-6  # a fit ends when a round lowers the loss by less, as a share
_STEP = 1e-6  # of numerical derivatives; all coordinates are normalised
_COMMON = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # variances that all points share, in means of those predicted


def as_covariances(covariances: tuple[ArrayLike, ArrayLike], count: int) -> tuple[Array, Array]:
    """Return the covariances (K, 2, 2) of both points of each match as float64, checked."""
    checked = []
    for side, value in enumerate(covariances):
        array = as_array(value, (None, 2, 2), f"covariances of image {side}")
        if len(array) != count:
            raise ArgumentError(f"covariances of image {side} are {len(array)}, for {count} matches")
        try:
            bad = not np.isfinite(np.linalg.cholesky(array)).all()
        except np.linalg.LinAlgError:
            bad = True
        if bad:
            raise ArgumentError(f"covariances of image {side} must be finite and positive definite")
        checked.append(array)
    return checked[0], checked[1]


def refine_homography(H: Array, points0: Array, points1: Array, covariances: tuple[Array, Array]) -> Array:
    """Fit a homography to inliers anew, each weighted by its covariances.

    Parameters
    ----------
    H : array (3, 3)
        Where to start; maps image 0 to image 1.
    points0, points1 : array (K, 2)
        Inliers, pixels.
    covariances : arrays (K, 2, 2)
        Of the points of image 0 and of image 1, pixels squared.

    Returns
    -------
    array (3, 3)
        With ``H[2, 2] = 1``; at least as likely as the one given.
    """
    T0, T1 = normalisation(points0), normalisation(points1)
    x0, x1 = transform(T0, points0), transform(T1, points1)
    predicted = T0[0, 0] ** 2 * covariances[0], T1[0, 0] ** 2 * covariances[1]

    def residuals(G: Array, S0: Array, S1: Array) -> tuple[Array, Array]:
        carried = transform(G, x0)
        w = homogeneous(x0) @ G[2]
        slope = (G[:2, :2] - carried[:, :, None] * G[2:, :2]) / w[:, None, None]
        return carried - x1, slope @ S0 @ slope.transpose(0, 2, 1) + S1

    def moved(G: Array, step: Array) -> Array:
        return G + np.append(step, 0.0).reshape(3, 3)

    start = scaled(T1 @ H @ np.linalg.inv(T0))
    return scaled(np.linalg.inv(T1) @ _fit(start, predicted, residuals, moved, 8) @ T0)


def refine_pose(
    R: Array, t: Array, points0: Array, points1: Array, covariances: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Fit a relative pose to inliers anew, each weighted by its covariances.

    Parameters
    ----------
    R, t : array (3, 3), (3,)
        Where to start: x1 = R x0 + t, t of unit length.
    points0, points1 : array (K, 2)
        Inliers, normalised coordinates.
    covariances : arrays (K, 2, 2)
        Of the points of image 0 and of image 1, normalised coordinates squared.

    Returns
    -------
    R, t
        At least as likely as those given.
    """
    h0, h1 = homogeneous(points0), homogeneous(points1)

    def residuals(pose: Array, S0: Array, S1: Array) -> tuple[Array, Array]:
        E = essential_from_pose(pose[:, :3], pose[:, 3])
        line0, line1 = h1 @ E, h0 @ E.T
        variance = sum(np.einsum("ni,nij,nj->n", n[:, :2], S, n[:, :2]) for n, S in ((line0, S0), (line1, S1)))
        return (h1 * line1).sum(1)[:, None], np.reshape(variance, (-1, 1, 1))

    def moved(pose: Array, step: Array) -> Array:
        t = pose[:, 3]
        across = np.linalg.svd(t[None])[2][1:]  # two directions in which a unit vector can move
        t = t + step[3:] @ across
        return np.column_stack([_rotation(step[:3]) @ pose[:, :3], t / np.linalg.norm(t)])

    pose = _fit(np.column_stack([R, t]), covariances, residuals, moved, 5)
    return pose[:, :3], pose[:, 3]


def _rotation(axis: Array) -> Array:
    """Return the rotation about an axis by as many radians as it is long (Rodrigues)."""
    return np.asarray(cv2.Rodrigues(axis)[0], np.float64)


def _in_deviations(offsets: Array, covariances: Array) -> Array:
    """Express offsets (K, D) in standard deviations: rows whose square is the Mahalanobis distance."""
    return np.linalg.solve(np.linalg.cholesky(covariances), offsets[..., None])[..., 0]


def _with_common_noise(predicted: Pair, residuals: Callable[[Array, Array], Pair]) -> Pair:
    """Add to the covariances of both images the share of their mean under which the errors are likeliest.

    ``residuals`` says for two covariances how far off each match is and the covariance of that. The errors are taken
    for normal, of any scale: inliers have no long tails.
    """
    mean0, mean1 = (S.trace(axis1=1, axis2=2).mean() / 2 * np.eye(2) for S in predicted)

    def likelihood(covariances: Pair) -> float:
        offsets, spread = residuals(*covariances)
        squared = (_in_deviations(offsets, spread) ** 2).sum(1).mean()
        return float(-np.log(np.linalg.det(spread)).mean() - offsets.shape[1] * np.log(squared + 1e-300))

    S0, S1 = predicted
    return max(((S0 + share * mean0, S1 + share * mean1) for share in _COMMON), key=likelihood)


def _fit(
    model: Array,
    predicted: Pair,
    residuals: Callable[[Array, Array, Array], Pair],
    moved: Callable[[Array, Array], Array],
    freedom: int,
) -> Array:
    """Minimise the sum of Cauchy losses of the errors by Gauss-Newton, as long as it falls."""
    S0, S1 = _with_common_noise(predicted, lambda S0, S1: residuals(model, S0, S1))

    def errors(model: Array) -> Array:
        return _in_deviations(*residuals(model, S0, S1))

    now = errors(model)
    scale = 4 * np.median((now**2).sum(1)) + 1e-12
    cost = np.log1p((now**2).sum(1) / scale).sum()
    steps = _STEP * np.eye(freedom)
    for _ in range(_ROUNDS):
        slope = np.stack([errors(moved(model, s)) - errors(moved(model, -s)) for s in steps], 2) / (2 * _STEP)
        weight = 1 / (1 + (now**2).sum(1) / scale)
        normal = np.einsum("nia,n,nib->ab", slope, weight, slope)
        step = np.linalg.lstsq(normal, -np.einsum("nia,n,ni->a", slope, weight, now), rcond=None)[0]
        candidate = moved(model, step)
        then = errors(candidate)
        total = np.log1p((then**2).sum(1) / scale).sum()
        if not total < cost:
            break
        gain, model, now, cost = cost - total, candidate, then, total
        if gain < _GAIN * cost:
            break
    return model
