"""Robust estimation: from matches with outliers to a homography, a fundamental matrix or a relative pose.

Two methods: ``"poselib"`` (locally optimised RANSAC with a final non-linear refinement) and ``"magsac"``
(OpenCV's USAC with MAGSAC++ scoring). Either only proposes a model; inliers are then counted here, the same
way for both: matches whose error under the *returned* model is at most ``threshold`` pixels. Which error is
said in each function. Where covariances of the points are known (`tiepoint.Matches.covariances`), the model is fitted
to its inliers once more, each weighted by its own (`tiepoint.geometry.refine`).

Matches that determine no model are an everyday input, not a mistake: they give `Estimate` with ``model=None``
and no inliers, never an exception. A model is refused when

- fewer matches support it than its minimal sample and one more (any sample supports itself),
  where matches count once per distinct point of either image; or
- the supporting points of either image, but for one, lie on a line to within the threshold; or
- it is not finite, or of lower rank than its kind; or
- it shows what no two photographs do: a homography that mirrors its inliers or sends them through infinity
  (such matches are outliers), a pose that puts most inliers behind a camera or at infinity.

Rows with nan, inf or absurd coordinates (beyond 10^7) take no part and are never inliers.

References
----------
Larsson et al., PoseLib (https://github.com/PoseLib/PoseLib); Barath et al., "MAGSAC++", CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import poselib
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ._arrays import Array, as_point_pairs, homogeneous
from .camera import Camera
from .epipolar import essential_from_pose, sampson_error
from .homography import normalisation, reprojection_error, scaled
from .refine import as_covariances, refine_homography, refine_pose


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """What robust estimation found.

    Attributes
    ----------
    model : float64 array (3, 3) or None
        Homography, fundamental matrix, or essential matrix; None if the matches determine none.
    inliers : bool array (K,)
        Which of the matches agree with the model; all false without one.
    R, t : float64 arrays (3, 3), (3,), or None
        For `estimate_relative_pose`: x1 = R x0 + t, with t of unit length because two views do not measure
        it.
    """

    model: Array | None
    inliers: NDArray[np.bool_]
    R: Array | None = None
    t: Array | None = None

    def __repr__(self) -> str:
        if self.model is None:
            return f"<Estimate: no model agrees with the {len(self.inliers)} matches>"
        rows = ", ".join("[" + ", ".join(f"{value:.6g}" for value in row) + "]" for row in self.model)
        return f"<Estimate: {int(self.inliers.sum())} inliers of {len(self.inliers)} matches, model [{rows}]>"


@dataclass(frozen=True)
class _Options:
    """The arguments that all three estimators share, checked."""

    threshold: float
    method: str
    confidence: float
    max_iterations: int
    seed: int

    def __post_init__(self) -> None:
        if self.method not in ("poselib", "magsac"):
            raise ArgumentError(f"method must be 'poselib' or 'magsac', not {self.method!r}")
        if not 0 < self.threshold < np.inf:
            raise ArgumentError(f"threshold must be a positive number of pixels, not {self.threshold}")
        if not 0 < self.confidence < 1:
            raise ArgumentError(f"confidence must lie between 0 and 1, not {self.confidence}")
        if self.max_iterations < 1:
            raise ArgumentError(f"max_iterations must be at least 1, not {self.max_iterations}")
        if not 0 <= self.seed < 2**31:
            raise ArgumentError(f"seed must lie between 0 and 2^31 - 1, not {self.seed}")

    def poselib(self, threshold: float) -> tuple[dict[str, float], dict[str, float]]:
        """Options for PoseLib's sampling, and for its refinement: Cauchy loss at half the threshold."""
        ransac = {
            "max_reproj_error": threshold,
            "max_epipolar_error": threshold,
            "success_prob": self.confidence,
            "min_iterations": min(1000, self.max_iterations),
            "max_iterations": self.max_iterations,
            "seed": self.seed,
        }
        return ransac, {"loss_scale": threshold / 2}

    def usac(self, threshold: float, lo_sample: int, lo_iterations: int) -> cv2.UsacParams:
        """Options for OpenCV: what its flag USAC_MAGSAC stands for, and our seed."""
        params = cv2.UsacParams()
        params.score = cv2.SCORE_METHOD_MAGSAC
        params.loMethod = cv2.LOCAL_OPTIM_SIGMA
        params.loSampleSize = lo_sample
        params.loIterations = lo_iterations
        params.final_polisher = cv2.MAGSAC
        params.threshold = threshold
        params.confidence = self.confidence
        params.maxIterations = self.max_iterations
        params.randomGeneratorState = self.seed
        return params


def estimate_homography(
    points0: ArrayLike,
    points1: ArrayLike,
    threshold: float = 3.0,
    method: str = "poselib",
    confidence: float = 0.9999,
    max_iterations: int = 10_000,
    seed: int = 0,
    covariances: tuple[ArrayLike, ArrayLike] | None = None,
) -> Estimate:
    """Estimate the homography x1 ~ H x0 from matches with outliers.

    Parameters
    ----------
    points0, points1 : array (K, 2)
        Matched points in pixels, row by row.
    threshold : float
        Largest distance |H x0 - x1| of an inlier, in pixels of image 1.
    method : "poselib" or "magsac"
        See the module.
    confidence : float
        Sampling ends once the best model was found with this probability.
    max_iterations : int
        Sampling ends after this many samples in any case.
    seed : int
        Of the sampling; equal inputs and seeds give equal results.
    covariances : two arrays (K, 2, 2), optional
        Of ``points0`` and ``points1``, pixels squared: weights of the final fit. Only their ratios count.

    Returns
    -------
    Estimate
        ``model`` is H with ``H[2, 2] = 1`` (unit norm if that element vanishes), or None.

    Raises
    ------
    ArgumentError
        Wrong shapes or options.

    Examples
    --------
    >>> grid = np.stack(np.meshgrid(range(0, 100, 10), range(0, 100, 10)), -1).reshape(-1, 2)
    >>> moved = grid + [5.0, -2.0]
    >>> moved[:30] = moved[:30][::-1]  # outliers
    >>> found = estimate_homography(grid, moved)
    >>> found.model.round(3) + 0.0
    array([[ 1.,  0.,  5.],
           [ 0.,  1., -2.],
           [ 0.,  0.,  1.]])
    >>> int(found.inliers.sum())
    70
    >>> estimate_homography(grid[:3], moved[:3]).model is None
    True
    """
    options = _Options(threshold, method, confidence, max_iterations, seed)
    p0, p1 = as_point_pairs(points0, points1)
    spreads = None if covariances is None else as_covariances(covariances, len(p0))
    usable = _usable(p0, p1)
    x0, x1 = p0[usable], p1[usable]

    def propose() -> Any:
        if method == "poselib":
            return poselib.estimate_homography(x0, x1, *options.poselib(threshold))[0]
        return cv2.findHomography(x0, x1, options.usac(threshold, 75, 15))[0]

    H = _propose(propose, x0, x1, minimal=4)
    if H is None:
        return _no_model(len(p0))
    inliers = _homography_inliers(H, x0, x1, threshold)
    if spreads is not None and inliers.sum() > 4:
        S0, S1 = (S[usable][inliers] for S in spreads)
        H = refine_homography(H, x0[inliers], x1[inliers], (S0, S1))
        inliers = _homography_inliers(H, x0, x1, threshold)
    T0, T1 = normalisation(x0), normalisation(x1)
    if not _supported(x0, x1, inliers, minimal=4, tolerance=threshold):
        return _no_model(len(p0))
    if _rank(T1 @ H @ np.linalg.inv(T0)) < 3:
        return _no_model(len(p0))
    return Estimate(scaled(H), _spread(inliers, usable))


def estimate_fundamental(
    points0: ArrayLike,
    points1: ArrayLike,
    threshold: float = 1.0,
    method: str = "poselib",
    confidence: float = 0.9999,
    max_iterations: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Estimate the fundamental matrix x1^T F x0 = 0 from matches with outliers.

    The parameters are those of `estimate_homography`, except that ``threshold`` is the largest Sampson
    distance of an inlier in pixels (`tiepoint.geometry.sampson_error`). ``model`` is F with unit norm, or
    None.

    Matches that all lie on one plane agree with a whole family of fundamental matrices, of which one is
    returned; where a scene may be flat, estimate a homography too, and compare inliers.

    Raises
    ------
    ArgumentError
        Wrong shapes or options.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.uniform([-1, -1, 2], [1, 1, 4], (60, 3))
    >>> camera = Camera.from_focal(300, (640, 480))
    >>> x0, x1 = camera.project(scene), camera.project(scene + [0.5, 0, 0])
    >>> found = estimate_fundamental(x0, x1)
    >>> int(found.inliers.sum())
    60
    """
    options = _Options(threshold, method, confidence, max_iterations, seed)
    p0, p1 = as_point_pairs(points0, points1)
    usable = _usable(p0, p1)
    x0, x1 = p0[usable], p1[usable]

    def propose() -> Any:
        if method == "poselib":
            return poselib.estimate_fundamental(x0, x1, *options.poselib(threshold))[0]
        return cv2.findFundamentalMat(x0, x1, options.usac(threshold, 50, 10))[0]

    F = _propose(propose, x0, x1, minimal=7)
    if F is None:
        return _no_model(len(p0))
    inliers = sampson_error(F, x0, x1) <= threshold
    T0, T1 = normalisation(x0), normalisation(x1)
    if not _supported(x0, x1, inliers, minimal=7, tolerance=threshold):
        return _no_model(len(p0))
    if _rank(np.linalg.inv(T1).T @ F @ np.linalg.inv(T0)) < 2:
        return _no_model(len(p0))
    return Estimate(F / np.linalg.norm(F), _spread(inliers, usable))


def estimate_relative_pose(
    points0: ArrayLike,
    points1: ArrayLike,
    camera0: Camera,
    camera1: Camera,
    threshold: float = 1.0,
    method: str = "poselib",
    confidence: float = 0.9999,
    max_iterations: int = 10_000,
    seed: int = 0,
    covariances: tuple[ArrayLike, ArrayLike] | None = None,
) -> Estimate:
    """Estimate the pose of camera 1 relative to camera 0 from matches with outliers.

    Parameters
    ----------
    points0, points1 : array (K, 2)
        Matched points in pixels, row by row, as photographed: lens distortion is removed here.
    camera0, camera1 : Camera
        Intrinsics of the two images.
    threshold : float
        Largest Sampson distance of an inlier, in pixels. It is measured in normalised coordinates, where a
        pixel is taken to be the mean of the two cameras' 1 / focal length.
    method, confidence, max_iterations, seed, covariances
        As in `estimate_homography`.

    Returns
    -------
    Estimate
        ``R``, ``t`` (unit length) with x1 = R x0 + t, and ``model``, the essential matrix ``[t]_x R`` for
        normalised coordinates; all None if there is no model. If the camera only turned, R is right and t is
        arbitrary.

    Raises
    ------
    ArgumentError
        Wrong shapes or options.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.uniform([-1, -1, 2], [1, 1, 4], (60, 3))
    >>> camera = Camera.from_focal(300, (640, 480))
    >>> x0, x1 = camera.project(scene), camera.project(scene + [0.5, 0, 0])
    >>> found = estimate_relative_pose(x0, x1, camera, camera)
    >>> found.t.round(6) + 0.0
    array([1., 0., 0.])
    """
    options = _Options(threshold, method, confidence, max_iterations, seed)
    p0, p1 = as_point_pairs(points0, points1)
    spreads = None if covariances is None else as_covariances(covariances, len(p0))
    pixels = p0, p1
    p0, p1 = camera0.normalise(p0), camera1.normalise(p1)
    usable = _usable(p0, p1)
    x0, x1 = p0[usable], p1[usable]
    pixel = np.mean([1 / np.mean(camera.focal_lengths) for camera in (camera0, camera1)])
    tolerance = float(threshold * pixel)

    def propose() -> Any:
        """Return [R | t] (3, 4)."""
        if method == "poselib":
            # The points are calibrated already: to PoseLib they come from cameras of focal length 1.
            unit = {"model": "PINHOLE", "width": 1, "height": 1, "params": [1.0, 1.0, 0.0, 0.0]}
            pose, _ = poselib.estimate_relative_pose(x0, x1, unit, unit, *options.poselib(tolerance))
            return np.column_stack([pose.R, pose.t])
        # To OpenCV they come from cameras of the mean focal length: MAGSAC's largest sigma is in pixels.
        K = np.diag([1 / pixel, 1 / pixel, 1])
        E = cv2.findEssentialMat(x0 / pixel, x1 / pixel, K, K, None, None, options.usac(threshold, 50, 10))[0]
        return None if E is None else _pose_from_essential(E, x0, x1, tolerance)

    pose = _propose(propose, x0, x1, minimal=5)
    if pose is None or not pose[:, 3].any():
        return _no_model(len(p0))
    R, t = pose[:, :3], pose[:, 3] / np.linalg.norm(pose[:, 3])
    E = essential_from_pose(R, t)
    inliers = sampson_error(E, x0, x1) <= tolerance
    if spreads is not None and inliers.sum() > 5:
        S0, S1 = (
            _normalised_covariances(camera, at[usable][inliers], S[usable][inliers])
            for camera, at, S in zip((camera0, camera1), pixels, spreads, strict=True)
        )
        R, t = refine_pose(R, t, x0[inliers], x1[inliers], (S0, S1))
        E = essential_from_pose(R, t)
        inliers = sampson_error(E, x0, x1) <= tolerance
    if not _supported(x0, x1, inliers, minimal=5, tolerance=tolerance):
        return _no_model(len(p0))
    if _in_front(R, t, x0[inliers], x1[inliers]).mean() <= 0.5:
        return _no_model(len(p0))
    return Estimate(E, _spread(inliers, usable), R, t)


def _homography_inliers(H: Array, x0: Array, x1: Array, threshold: float) -> NDArray[np.bool_]:
    """Say which matches agree with H and keep their orientation.

    The map keeps its orientation at x where det(H) and the cube of the third coordinate w of H x have one sign; with
    det(H) made positive, w <= 0 means mirrored, or beyond the line that goes to infinity.
    """
    H = H * np.sign(np.linalg.det(H))
    return np.where(homogeneous(x0) @ H[2] > 0, reprojection_error(H, x0, x1), np.inf) <= threshold


def _usable(p0: Array, p1: Array) -> NDArray[np.bool_]:
    """Rows whose coordinates are numbers that an image could hold (nan compares false)."""
    return np.all(np.abs(np.hstack([p0, p1])) < 1e7, axis=1)


def _propose(propose: Callable[[], Any], x0: Array, x1: Array, minimal: int) -> Array | None:
    """Run a library's estimator where it can succeed, and return its model if that is a finite one."""
    if not _supported(x0, x1, np.ones(len(x0), bool), minimal, tolerance=0):
        return None
    try:
        model = propose()
    except cv2.error:  # OpenCV's way to say that sampling found nothing
        return None
    # OpenCV may stack several fundamental matrices; the first is as good as any that later checks could keep.
    model = None if model is None else np.asarray(model, np.float64)[:3]
    if model is None or model.shape[0] != 3 or not np.isfinite(model).all():
        return None
    return model


def _supported(x0: Array, x1: Array, inliers: NDArray[np.bool_], minimal: int, tolerance: float) -> bool:
    """Whether the inliers are enough distinct points, not on a line, in both images."""
    for points in (x0[inliers], x1[inliers]):
        points = np.unique(points, axis=0)
        if len(points) < minimal + 1:
            return False
        for _ in range(2):  # on a line as they are, or once the point farthest from it is left out
            centred = points - points.mean(axis=0)
            normal = np.linalg.svd(centred, full_matrices=False)[2][1]
            distance = np.abs(centred @ normal)
            if distance.max() <= max(tolerance, 1e-9 * np.abs(centred).max()):
                return False
            points = np.delete(points, distance.argmax(), axis=0)
    return True


def _rank(model: Array) -> int:
    """Return the numerical rank of a matrix for normalised coordinates."""
    return int(np.linalg.matrix_rank(model, tol=1e-6 * np.linalg.norm(model)))


def _normalised_covariances(camera: Camera, pixels: Array, covariances: Array) -> Array:
    """Carry covariances (K, 2, 2) from pixels to normalised coordinates."""
    slope = np.stack([camera.normalise(pixels + half) - camera.normalise(pixels - half) for half in np.eye(2) / 2], 2)
    return slope @ covariances @ slope.transpose(0, 2, 1)


def _pose_from_essential(E: Any, x0: Array, x1: Array, tolerance: float) -> Array:
    """Return the one of an essential matrix's four poses with most inliers in front of both cameras."""
    inliers = sampson_error(E, x0, x1) <= tolerance
    R0, R1, t = (np.asarray(part, np.float64) for part in cv2.decomposeEssentialMat(E))
    poses = [np.column_stack([R, sign * t]) for R in (R0, R1) for sign in (1, -1)]
    return max(poses, key=lambda pose: _in_front(pose[:, :3], pose[:, 3], x0[inliers], x1[inliers]).sum())


def _in_front(R: Array, t: Array, x0: Array, x1: Array) -> NDArray[np.bool_]:
    """Whether the rays of each match meet in front of both cameras; parallel rays do not meet."""
    ray0, ray1 = homogeneous(x0) @ R.T, homogeneous(x1)
    # depth0 * ray0 + t = depth1 * ray1; the cross product with one ray gives the other's depth.
    normal = np.cross(ray0, ray1)
    depth0 = -(np.cross(t, ray1) * normal).sum(axis=1)
    depth1 = -(np.cross(t, ray0) * normal).sum(axis=1)
    # 1e-6 rad is a thousandth of a pixel: less than that is rounding, not parallax.
    meet = np.linalg.norm(normal, axis=1) > 1e-6 * np.linalg.norm(ray0, axis=1) * np.linalg.norm(ray1, axis=1)
    return meet & (depth0 > 0) & (depth1 > 0)


def _spread(inliers: NDArray[np.bool_], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Carry a mask over the usable rows to all rows."""
    mask = np.zeros(len(usable), bool)
    mask[usable] = inliers
    return mask


def _no_model(count: int) -> Estimate:
    return Estimate(None, np.zeros(count, bool))
