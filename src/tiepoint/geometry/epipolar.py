"""Epipolar geometry: fundamental and essential matrices, relative poses, and their errors.

Poses are world-to-camera, ``x_cam = R x_world + t``; a relative pose (R, t) maps camera 0 to camera 1.
Fundamental matrices act on pixels and essential matrices on normalised coordinates (`Camera.normalise`), both
as ``x1^T F x0 = 0``. Everything is float64; (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array, as_array, as_point_pairs, homogeneous


def relative_pose(pose0: tuple[ArrayLike, ArrayLike], pose1: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    """Return the pose that maps camera 0 to camera 1.

    Parameters
    ----------
    pose0, pose1 : (array (3, 3), array (3,))
        World-to-camera rotation and translation of each camera.

    Returns
    -------
    R : float64 array (3, 3)
    t : float64 array (3,)
        A point X in camera 0 is ``R X + t`` in camera 1.

    Raises
    ------
    ArgumentError
        Wrong shapes.

    Examples
    --------
    >>> R, t = relative_pose((np.eye(3), [0, 0, 1]), (np.eye(3), [2, 0, 1]))
    >>> t
    array([2., 0., 0.])
    """
    R0, t0 = as_array(pose0[0], (3, 3), "R of pose0"), as_array(pose0[1], (3,), "t of pose0")
    R1, t1 = as_array(pose1[0], (3, 3), "R of pose1"), as_array(pose1[1], (3,), "t of pose1")
    R = R1 @ R0.T
    return R, t1 - R @ t0


def essential_from_pose(R: ArrayLike, t: ArrayLike) -> Array:
    """Return the essential matrix ``E = [t]_x R`` of a relative pose.

    Parameters
    ----------
    R : array (3, 3)
    t : array (3,)
        Its length only scales E.

    Returns
    -------
    float64 array (3, 3)

    Raises
    ------
    ArgumentError
        Wrong shapes.

    Examples
    --------
    >>> essential_from_pose(np.eye(3), [1, 0, 0])
    array([[ 0.,  0.,  0.],
           [ 0.,  0., -1.],
           [ 0.,  1.,  0.]])
    """
    x, y, z = as_array(t, (3,), "t")
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]) @ as_array(R, (3, 3), "R")


def fundamental_from_pose(K0: ArrayLike, K1: ArrayLike, R: ArrayLike, t: ArrayLike) -> Array:
    """Return the fundamental matrix ``F = K1^-T [t]_x R K0^-1`` of two pinhole cameras.

    Parameters
    ----------
    K0, K1 : array (3, 3)
        Intrinsics of the two cameras, in pixels.
    R, t : array (3, 3), (3,)
        Relative pose from camera 0 to camera 1.

    Returns
    -------
    float64 array (3, 3)
        Of unit norm, unless t is zero.

    Raises
    ------
    ArgumentError
        Wrong shapes.

    Examples
    --------
    >>> K = np.diag([100.0, 100.0, 1.0])
    >>> F = fundamental_from_pose(K, K, np.eye(3), [1, 0, 0])
    >>> sampson_error(F, [[0, 7]], [[20, 7]])  # a sideways step keeps the row
    array([0.])
    """
    K0, K1 = as_array(K0, (3, 3), "K0"), as_array(K1, (3, 3), "K1")
    F = np.linalg.inv(K1).T @ essential_from_pose(R, t) @ np.linalg.inv(K0)
    return F / (np.linalg.norm(F) or 1.0)


def sampson_error(F: ArrayLike, points0: ArrayLike, points1: ArrayLike) -> Array:
    """Return the Sampson distance of each match to an epipolar geometry.

    To first order the distance by which the two points together (four coordinates) miss an exact match.

    Parameters
    ----------
    F : array (3, 3)
        Fundamental matrix for pixels (or essential matrix for normalised points), at any scale.
    points0, points1 : array (N, 2)
        Corresponding points.

    Returns
    -------
    float64 array (N,)
        In the unit of the points, not squared.

    Raises
    ------
    ArgumentError
        Wrong shapes.

    References
    ----------
    Hartley and Zisserman, *Multiple View Geometry*, equation 11.9 (its square root, per match).

    Examples
    --------
    >>> F = [[0, 0, 0], [0, 0, -1], [0, 1, 0]]  # a sideways step: matches lie on the same row
    >>> sampson_error(F, [[0, 0]], [[5, 2]]).round(3)  # each point is one pixel off, in four dimensions √2
    array([1.414])
    """
    residual, line0, line1 = _epipolar_terms(F, points0, points1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(residual) / np.sqrt(line0 + line1)
    return np.where(np.isnan(error), np.inf, error)


def symmetric_epipolar_error(F: ArrayLike, points0: ArrayLike, points1: ArrayLike) -> Array:
    """Return the mean distance of the points of each match to their epipolar lines, (N,).

    Takes, returns and raises what `sampson_error` does. (The precision reported by SuperGlue thresholds
    another form at 5e-4: the sum of the two *squared* distances, in normalised coordinates.) A point at the
    epipole has no epipolar line: inf.

    Examples
    --------
    >>> symmetric_epipolar_error([[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0]], [[5, 2]])
    array([2.])
    """
    residual, line0, line1 = _epipolar_terms(F, points0, points1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(residual) * (1 / np.sqrt(line0) + 1 / np.sqrt(line1)) / 2
    return np.where(np.isnan(error), np.inf, error)


def pose_error(R_est: ArrayLike, t_est: ArrayLike, R: ArrayLike, t: ArrayLike) -> tuple[float, float]:
    """Return the angles by which an estimated relative pose misses the true one.

    The protocol of SuperGlue and LightGlue: two views do not measure the length of t, and the sign of its
    direction is not held against the estimate, so the second angle is at most π/2. Benchmarks use the larger
    of the two.

    Parameters
    ----------
    R_est, R : array (3, 3)
        Rotations.
    t_est, t : array (3,)
        Translations of any length.

    Returns
    -------
    rotation : float
        Angle of ``R_est R^T`` in radians, in [0, π].
    translation : float
        Angle between the directions of ``±t_est`` and ``t`` in radians, in [0, π/2]. 0 if the true
        translation has no length (there is no direction to miss), π/2 if only the estimated one has none.

    Raises
    ------
    ArgumentError
        Wrong shapes.

    Examples
    --------
    >>> pose_error(np.eye(3), [0, 0, -2], np.eye(3), [0, 0, 1])
    (0.0, 0.0)
    """
    R_est, R = as_array(R_est, (3, 3), "R_est"), as_array(R, (3, 3), "R")
    t_est, t = as_array(t_est, (3,), "t_est"), as_array(t, (3,), "t")
    # |R_est - R| = 2√2 sin(angle / 2); unlike the arc cosine of the trace this is exact for small angles.
    rotation = 2 * np.arcsin(min(1.0, np.linalg.norm(R_est - R) / np.sqrt(8)))
    if np.linalg.norm(t) == 0:
        translation = 0.0
    elif np.linalg.norm(t_est) == 0:
        translation = np.pi / 2
    else:
        translation = float(np.arctan2(np.linalg.norm(np.cross(t_est, t)), abs(t_est @ t)))
    return float(rotation), translation


def _epipolar_terms(F: ArrayLike, points0: ArrayLike, points1: ArrayLike) -> tuple[Array, Array, Array]:
    """Return x1^T F x0 and the squared normals of the epipolar lines in image 0 and in image 1."""
    p0, p1 = as_point_pairs(points0, points1)
    F = as_array(F, (3, 3), "F")
    x0, x1 = homogeneous(p0), homogeneous(p1)
    lines1, lines0 = x0 @ F.T, x1 @ F
    residual = (x1 * lines1).sum(axis=1)
    return residual, (lines0[:, :2] ** 2).sum(axis=1), (lines1[:, :2] ** 2).sum(axis=1)
