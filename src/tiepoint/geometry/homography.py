"""Homographies: applying, fitting and measuring them.

A homography H (3, 3) maps pixels of image 0 to pixels of image 1: ``x1 ~ H x0`` in homogeneous coordinates.
Everything is float64; coordinates are (x, y) with (0, 0) at the centre of the top-left pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from ._arrays import Array, as_array, as_point_pairs, homogeneous


def transform(H: ArrayLike, points: ArrayLike) -> Array:
    """Map points through a homography.

    Parameters
    ----------
    H : array (3, 3)
        Homography, at any scale.
    points : array (N, 2)
        (x, y) in pixels of image 0.

    Returns
    -------
    float64 array (N, 2)
        (x, y) in pixels of image 1; points on the line that H sends to infinity come out as inf or nan.

    Raises
    ------
    ArgumentError
        Wrong shape.

    Examples
    --------
    >>> transform([[2, 0, 1], [0, 2, 0], [0, 0, 1]], [[3, 4]])
    array([[7., 8.]])
    """
    mapped = homogeneous(as_array(points, (None, 2), "points")) @ as_array(H, (3, 3), "H").T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return mapped[:, :2] / mapped[:, 2:]


def estimate_dlt(points0: ArrayLike, points1: ArrayLike, weights: ArrayLike | None = None) -> Array | None:
    """Fit a homography to all points by the normalised direct linear transform.

    Least squares without outlier rejection; see `tiepoint.geometry.robust.estimate_homography` for that.

    Parameters
    ----------
    points0, points1 : array (N, 2)
        Corresponding pixels.
    weights : array (N,), optional
        How much each squared residual counts, 0 or more. Equal by default.

    Returns
    -------
    float64 array (3, 3) or None
        Scaled to ``H[2, 2] = 1`` where that element is not zero. None if the points do not determine a
        homography: fewer than four of positive weight, fewer than two off a common line, or not finite.

    Raises
    ------
    ArgumentError
        Wrong shapes or negative weights.

    References
    ----------
    Hartley, "In defense of the eight-point algorithm", PAMI 1997 (the normalisation);
    Hartley and Zisserman, *Multiple View Geometry*, algorithm 4.2.

    Examples
    --------
    >>> square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]])
    >>> estimate_dlt(square, square + [5, 2]).round(6) + 0.0
    array([[1., 0., 5.],
           [0., 1., 2.],
           [0., 0., 1.]])
    """
    p0, p1 = as_point_pairs(points0, points1)
    w = np.ones(len(p0)) if weights is None else as_array(weights, (None,), "weights")
    if len(w) != len(p0) or (w < 0).any():
        raise ArgumentError(f"weights must be {len(p0)} numbers of 0 or more, one per point")
    p0, p1, w = p0[w > 0], p1[w > 0], w[w > 0]
    if len(p0) < 4 or not (np.isfinite(p0).all() and np.isfinite(p1).all() and np.isfinite(w).all()):
        return None
    T0, T1 = normalisation(p0, w), normalisation(p1, w)
    x0, x1 = homogeneous(transform(T0, p0)), transform(T1, p1)
    # Two equations per point: the third row of H times u1 equals the first, times v1 the second.
    zero = np.zeros_like(x0)
    rows = (
        np.concatenate([np.hstack([x0, zero, -x1[:, :1] * x0]), np.hstack([zero, x0, -x1[:, 1:] * x0])])
        * np.sqrt(np.tile(w / w.mean(), 2))[:, None]
    )
    # Eight rows have a ninth right singular vector only in the full decomposition.
    _, singular, vectors = np.linalg.svd(rows, full_matrices=len(rows) < 9)
    if singular[7] < 1e-9 * singular[0]:  # a second homography fits as well: the points do not determine one
        return None
    H = np.linalg.inv(T1) @ vectors[8].reshape(3, 3) @ T0
    return scaled(H)


def reprojection_error(H: ArrayLike, points0: ArrayLike, points1: ArrayLike) -> Array:
    """Return the distance ``|H x0 - x1|`` in pixels of image 1.

    Parameters
    ----------
    H : array (3, 3)
        Homography from image 0 to image 1.
    points0, points1 : array (N, 2)
        Corresponding pixels.

    Returns
    -------
    float64 array (N,)
        Pixels; inf where H sends the point to infinity.

    Raises
    ------
    ArgumentError
        Wrong shapes.

    Examples
    --------
    >>> reprojection_error(np.eye(3), [[0, 0]], [[3, 4]])
    array([5.])
    """
    p0, p1 = as_point_pairs(points0, points1)
    error = np.linalg.norm(transform(H, p0) - p1, axis=1)
    return np.where(np.isnan(error), np.inf, error)


def symmetric_transfer_error(H: ArrayLike, points0: ArrayLike, points1: ArrayLike) -> Array:
    """Return the mean of ``|H x0 - x1|`` and ``|H^-1 x1 - x0|`` in pixels, (N,).

    Takes what `reprojection_error` takes and raises what it raises. A singular H has no inverse: inf.

    Examples
    --------
    >>> symmetric_transfer_error(np.diag([2, 2, 1]), [[0, 0]], [[4, 0]])
    array([3.])
    """
    try:
        inverse = np.linalg.inv(as_array(H, (3, 3), "H"))
    except np.linalg.LinAlgError:
        return np.full(len(as_point_pairs(points0, points1)[0]), np.inf)
    return (reprojection_error(H, points0, points1) + reprojection_error(inverse, points1, points0)) / 2


def corner_error(H_est: ArrayLike, H_true: ArrayLike, size: tuple[int, int]) -> float:
    """Return how far apart two homographies put the corners of image 0, in pixels of image 1.

    The measure of the HPatches benchmark: the mean over the four corners of ``|H_est c - H_true c|``. The
    corners are those of the picture, half a pixel outside the centres of its corner pixels.

    Parameters
    ----------
    H_est, H_true : array (3, 3)
        Homographies from image 0 to image 1.
    size : (int, int)
        (width, height) of image 0.

    Returns
    -------
    float
        Pixels; inf if a homography sends a corner to infinity.

    Raises
    ------
    ArgumentError
        Wrong shapes.

    References
    ----------
    DeTone et al., "SuperPoint", CVPR workshops 2018, section 5; Lindenberger et al., "LightGlue", ICCV 2023.

    Examples
    --------
    >>> corner_error([[1, 0, 3], [0, 1, 4], [0, 0, 1]], np.eye(3), (640, 480))
    5.0
    """
    width, height = size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    return float(reprojection_error(H_est, corners, transform(H_true, corners)).mean())


def scaled(H: Array) -> Array:
    """Return H with ``H[2, 2] = 1``, or with unit norm if that element vanishes."""
    norm = np.linalg.norm(H)
    return H / (H[2, 2] if abs(H[2, 2]) > 1e-12 * norm else norm)


def normalisation(points: Array, weights: Array | None = None) -> Array:
    """Return Hartley's similarity (3, 3): centroid to the origin, mean distance from it to √2.

    Points that all coincide are only shifted.
    """
    centre = np.average(points, axis=0, weights=weights)
    distance = np.average(np.linalg.norm(points - centre, axis=1), weights=weights)
    s = np.sqrt(2) / distance if distance > 1e-12 * (1 + np.abs(centre).max()) else 1.0
    return np.array([[s, 0, -s * centre[0]], [0, s, -s * centre[1]], [0, 0, 1]])
