"""What benchmarks measure: AUC of errors, precision and recall of matches.

Coordinates are pixels of the two pictures. A match's error is symmetric in the two pictures:

- under a homography, the mean of ``|H x0 - x1|`` and ``|H^-1 x1 - x0|``;
- under a relative pose, the mean distance of the two points to their epipolar lines, which a wrong match
  along the line does not notice: precision on pose sets is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, InputError
from ..geometry.epipolar import fundamental_from_pose, symmetric_epipolar_error
from ..geometry.homography import symmetric_transfer_error, transform
from .datasets import HomographyTruth, Matrix, PoseTruth


def auc(errors: ArrayLike, thresholds: Sequence[float]) -> list[float]:
    """Return the area under the recall curve up to each threshold, as a share of its largest possible value.

    The curve joins the points (i-th smallest error, i / N) by straight lines, starts at (0, 0) and stays
    level from the last error below the threshold: the measure of SuperGlue, which LightGlue and most later
    papers use.

    Parameters
    ----------
    errors : array (N,)
        One error per pair; inf for a pair that failed.
    thresholds : sequence of positive floats
        In the unit of the errors.

    Returns
    -------
    list of float
        In [0, 1], one per threshold; nan without errors.

    Raises
    ------
    ArgumentError
        A threshold that is not positive, or a nan among the errors.

    References
    ----------
    Sarlin et al., "SuperGlue", CVPR 2020, section 5.

    Examples
    --------
    >>> auc([0.0, 1.0, float("inf")], [1, 2])  # a third of the pairs at once, another one only at 1
    [0.333..., 0.583...]
    """
    ascending = np.sort(np.asarray(errors, float).ravel())
    if np.isnan(ascending).any() or any(threshold <= 0 for threshold in thresholds):
        raise ArgumentError("errors must not be nan, and thresholds must be positive")
    if len(ascending) == 0:
        return [float("nan") for _ in thresholds]
    recall = np.arange(1, len(ascending) + 1) / len(ascending)
    areas = []
    for threshold in thresholds:
        below = np.searchsorted(ascending, threshold)  # strictly below
        x = np.concatenate([[0.0], ascending[:below], [threshold]])
        y = np.concatenate([[0.0], recall[:below], recall[below - 1 : below] if below else [0.0]])
        areas.append(float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / threshold))
    return areas


def match_errors(truth: HomographyTruth | PoseTruth, points0: ArrayLike, points1: ArrayLike) -> Matrix:
    """Return by how many pixels each match misses the truth; points are (K, 2), row by row.

    Examples
    --------
    >>> match_errors(HomographyTruth(np.eye(3)), [[0, 0], [5, 5]], [[0, 0], [8, 9]])
    array([0., 5.])
    """
    if isinstance(truth, HomographyTruth):
        return symmetric_transfer_error(truth.H, points0, points1)
    F = fundamental_from_pose(truth.K0, truth.K1, truth.R, truth.t)
    return symmetric_epipolar_error(F, points0, points1)


def precision(
    truth: HomographyTruth | PoseTruth, points0: ArrayLike, points1: ArrayLike, threshold: float = 3.0
) -> float:
    """Return the share of matches that miss the truth by less than ``threshold`` pixels; 0 without matches.

    Examples
    --------
    >>> precision(HomographyTruth(np.eye(3)), [[0, 0], [5, 5]], [[0, 0], [8, 9]])
    0.5
    """
    errors = match_errors(truth, points0, points1)
    return float((errors < threshold).mean()) if len(errors) else 0.0


def recall(
    matches: NDArray[np.int64],
    keypoints0: Matrix,
    keypoints1: Matrix,
    projected0: Matrix,
    projected1: Matrix,
    threshold: float = 3.0,
) -> float | None:
    """Return the share of true keypoint pairs that the matches found.

    A true pair is two keypoints that are each other's nearest neighbour once image 0 is carried into image 1,
    at less than ``threshold`` pixels (mean of both directions). It is found when one of its keypoints is in
    a match that is right to within the same threshold: detectors that put several keypoints on one spot, as
    SIFT does where a blob has two orientations, need not hit the very same copy.

    Parameters
    ----------
    matches : int64 array (K, 2)
        Indices of the matched keypoints.
    keypoints0, keypoints1 : array (N, 2), (M, 2)
        Pixels.
    projected0 : array (N, 2)
        Where the keypoints of image 0 lie in image 1, nan where unknown; see `project`.
    projected1 : array (M, 2)
        Where the keypoints of image 1 lie in image 0.
    threshold : float
        Pixels.

    Returns
    -------
    float or None
        In [0, 1]; None if there is no true pair.

    Examples
    --------
    >>> keypoints = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    >>> recall(np.array([[0, 0], [1, 2]]), keypoints, keypoints, keypoints, keypoints)
    0.333...
    """

    def error(i: NDArray[np.int64], j: NDArray[np.int64]) -> Matrix:
        forth = np.linalg.norm(projected0[i] - keypoints1[j], axis=1)
        back = np.linalg.norm(projected1[j] - keypoints0[i], axis=1)
        return (forth + back) / 2

    known0 = np.flatnonzero(np.isfinite(projected0).all(axis=1))
    known1 = np.flatnonzero(np.isfinite(projected1).all(axis=1))
    if len(known0) == 0 or len(known1) == 0:
        return None
    nearest = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(
        projected0[known0].astype(np.float32), keypoints1[known1].astype(np.float32)
    )
    true0 = known0[[pair.queryIdx for pair in nearest]]
    true1 = known1[[pair.trainIdx for pair in nearest]]
    close = error(true0, true1) < threshold
    true0, true1 = true0[close], true1[close]
    if len(true0) == 0:
        return None
    right = matches[error(matches[:, 0], matches[:, 1]) < threshold]
    return float((np.isin(true0, right[:, 0]) | np.isin(true1, right[:, 1])).mean())


def project(truth: HomographyTruth | PoseTruth, keypoints0: Matrix, keypoints1: Matrix) -> tuple[Matrix, Matrix] | None:
    """Carry the keypoints of each picture into the other.

    Parameters
    ----------
    truth : HomographyTruth or PoseTruth
        A pose carries points only with depth maps.
    keypoints0, keypoints1 : array (N, 2), (M, 2)
        Pixels.

    Returns
    -------
    (array (N, 2), array (M, 2)) or None
        Pixels of image 1 and of image 0, nan where the depth is unknown; None if the truth has no depth maps.

    Examples
    --------
    >>> project(HomographyTruth(np.diag([2.0, 2.0, 1.0])), np.array([[3.0, 4.0]]), np.array([[2.0, 2.0]]))
    (array([[6., 8.]]), array([[1., 1.]]))
    """
    if isinstance(truth, HomographyTruth):
        return transform(truth.H, keypoints0), transform(np.linalg.inv(truth.H), keypoints1)
    if truth.depth0 is None or truth.depth1 is None:
        return None
    depth0, depth1 = _read_depth(truth.depth0), _read_depth(truth.depth1)
    K_depth0, K_depth1 = (truth.K0, truth.K1) if truth.K_depth is None else (truth.K_depth, truth.K_depth)
    there = _carry(keypoints0, truth.K0, depth0, K_depth0, truth.R, truth.t, truth.K1)
    back = _carry(keypoints1, truth.K1, depth1, K_depth1, truth.R.T, -truth.R.T @ truth.t, truth.K0)
    return there, back


def _read_depth(path: object) -> Matrix:
    """Return a depth map in metres, nan where unknown."""
    millimetres = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if millimetres is None or millimetres.ndim != 2:
        raise InputError(f"{path}: not a depth map")
    return np.where(millimetres > 0, millimetres / 1000.0, np.nan)


def _carry(
    points: Matrix, K_from: Matrix, depth: Matrix, K_depth: Matrix, R: Matrix, t: Matrix, K_to: Matrix
) -> Matrix:
    """Carry pixels (N, 2) of one camera into another, at the depth of the nearest pixel of the depth map."""
    rays = np.column_stack([points, np.ones(len(points))]) @ np.linalg.inv(K_from).T
    column, row = np.rint((rays @ K_depth.T)[:, :2]).astype(int).T
    inside = (column >= 0) & (column < depth.shape[1]) & (row >= 0) & (row < depth.shape[0])
    z = np.full(len(points), np.nan)
    z[inside] = depth[row[inside], column[inside]]
    seen = (rays * z[:, None]) @ R.T + t
    seen[seen[:, 2] <= 0] = np.nan  # behind the other camera
    return (seen[:, :2] / seen[:, 2:]) @ K_to[:2, :2].T + K_to[:2, 2]
