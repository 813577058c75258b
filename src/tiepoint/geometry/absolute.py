"""The pose of one camera, from matches of its pixels with 3D points: `estimate_absolute_pose` and its kin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import poselib
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from .camera import FOCAL_FACTOR, Camera
from .colmap import import_pycolmap, to_colmap

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AbsolutePose:
    """The pose of one camera in the world, as far as its matches with 3D points determine it.

    Attributes
    ----------
    R, t : float64 arrays (3, 3) and (3,), or None
        ``x_camera = R x_world + t``; None if there is no pose that enough matches agree with.
    inliers : bool array (K,)
        Which matches agree with it.
    camera : Camera
        As given, or as estimated together with the pose.
    """

    R: Array | None
    t: Array | None
    inliers: NDArray[np.bool_]
    camera: Camera

    @property
    def centre(self) -> Array | None:
        """Where the camera stood, float64 (3,), in the world's frame."""
        return None if self.R is None or self.t is None else -self.R.T @ self.t


def estimate_absolute_pose(
    points: ArrayLike,
    points3D: ArrayLike,
    camera: Camera,
    threshold: float = 4.0,
    seed: int = 0,
) -> AbsolutePose:
    """Estimate a calibrated camera's pose from matches of pixels with 3D points, some of them wrong.

    Parameters
    ----------
    points : array (K, 2)
        Pixels, as photographed: lens distortion is taken into account.
    points3D : array (K, 3)
        In the world's frame, row by row.
    camera : Camera
        Intrinsics.
    threshold : float
        Largest reprojection error of an inlier, in pixels.
    seed : int
        Of the sampling; equal inputs and seeds give equal results.

    Returns
    -------
    AbsolutePose
        Without ``R`` and ``t`` if fewer than four matches agree with any pose, or those that do lie on a line.

    Raises
    ------
    ArgumentError
        ``points`` and ``points3D`` do not correspond.

    References
    ----------
    P3P in LO-RANSAC and a final refinement: PoseLib, https://github.com/PoseLib/PoseLib.

    Examples
    --------
    >>> world = np.random.default_rng(0).uniform([-1, -1, 4], [1, 1, 6], (50, 3))
    >>> camera = Camera.from_focal(500, (640, 480))
    >>> pixels = camera.project(world + [0.5, 0, 1])
    >>> pixels[:10] = pixels[10:20]  # wrong matches
    >>> found = estimate_absolute_pose(pixels, world, camera)
    >>> found.t.round(6), int(found.inliers.sum())
    (array([0.5, 0. , 1. ]), 40)
    """
    pixels, world = _corresponding(points, points3D)
    rays = camera.normalise(pixels)
    usable = np.isfinite(rays).all(axis=1) & np.isfinite(world).all(axis=1)
    if usable.sum() < 4:
        return _no_pose(len(pixels), camera)
    # The rays are free of distortion: to PoseLib they come from a camera of focal length 1.
    unit = {"model": "PINHOLE", "width": 1, "height": 1, "params": [1.0, 1.0, 0.0, 0.0]}
    tolerance = threshold / float(np.mean(camera.focal_lengths))
    ransac = {"max_reproj_error": tolerance, "seed": seed, "max_iterations": 10_000}
    pose, _ = poselib.estimate_absolute_pose(rays[usable], world[usable], unit, ransac, {"loss_scale": tolerance / 2})
    return _checked(np.asarray(pose.R), np.asarray(pose.t), pixels, world, camera, threshold)


def estimate_camera_and_pose(
    points: ArrayLike,
    points3D: ArrayLike,
    size: tuple[int, int],
    focal: float | None = None,
    threshold: float = 4.0,
    seed: int = 0,
) -> AbsolutePose:
    """Estimate a pose, and the focal length and distortion of the lens with it.

    Parameters
    ----------
    points, points3D, threshold, seed
        As in `estimate_absolute_pose`.
    size : (int, int)
        (width, height) of the photograph, in whose middle the principal point is taken to be.
    focal : float, optional
        Focal length in pixels, where it is known; only the distortion is then estimated. A flat scene that is seen
        from the front does not tell a long focal length from a far camera, so it is worth knowing.

    Returns
    -------
    AbsolutePose
        Its ``camera`` is a SIMPLE_RADIAL one.

    Raises
    ------
    ArgumentError
        ``points`` and ``points3D`` do not correspond.
    MissingDependencyError
        pycolmap is not installed.

    References
    ----------
    P4Pf in LO-RANSAC, and the refinement, are COLMAP's.

    Examples
    --------
    >>> world = np.random.default_rng(0).uniform([-2, -2, 4], [2, 2, 9], (80, 3))
    >>> pixels = Camera("SIMPLE_RADIAL", 640, 480, (500, 319.5, 239.5, -0.1)).project(world)
    >>> found = estimate_camera_and_pose(pixels, world, (640, 480))
    >>> round(found.camera.params[0]), round(found.camera.params[3], 3), found.centre.round(3) + 0.0
    (500, -0.1, array([0., 0., 0.]))
    """
    pycolmap = import_pycolmap()
    pixels, world = _corresponding(points, points3D)
    guess = Camera.from_focal(focal or FOCAL_FACTOR * max(size), size)
    usable = np.isfinite(pixels).all(axis=1) & np.isfinite(world).all(axis=1)
    if focal is not None:
        start = estimate_absolute_pose(pixels, world, guess, threshold, seed)
        if start.R is None or start.t is None:
            return start
        pose = pycolmap.Rigid3d(np.column_stack([start.R, start.t]))
        inliers = start.inliers
    elif usable.sum() < 5:
        return _no_pose(len(pixels), guess)
    else:
        options = pycolmap.AbsolutePoseEstimationOptions(estimate_focal_length=True)
        options.ransac.max_error = threshold
        options.ransac.min_inlier_ratio = 0.02  # of the matches of a hard query few are right
        options.ransac.random_seed = seed
        camera = guess.to_pycolmap()
        found = pycolmap.estimate_absolute_pose(to_colmap(pixels[usable]), world[usable], camera, options)
        if found is None or camera.focal_length < 0.1 * max(size):
            return _no_pose(len(pixels), guess)
        guess, pose = Camera.from_focal(camera.focal_length, size), found["cam_from_world"]
        inliers = np.zeros(len(pixels), bool)
        inliers[usable] = found["inlier_mask"]
    camera = Camera("SIMPLE_RADIAL", *size, (*guess.params, 0.0)).to_pycolmap()
    refinement = pycolmap.AbsolutePoseRefinementOptions(refine_focal_length=focal is None, refine_extra_params=True)
    refined = pycolmap.refine_absolute_pose(pose, to_colmap(pixels), world, inliers, camera, refinement)
    matrix = (pose if refined is None else refined["cam_from_world"]).matrix()
    if camera.focal_length < 0.1 * max(size):
        return _no_pose(len(pixels), guess)
    final = Camera.from_colmap(camera.model_name, camera.width, camera.height, list(camera.params))
    return _checked(matrix[:, :3], matrix[:, 3], pixels, world, final, threshold)


def _checked(R: Array, t: Array, pixels: Array, world: Array, camera: Camera, threshold: float) -> AbsolutePose:
    """Count inliers by their error under the final pose; refuse a pose that they do not determine.

    Three points agree with some pose always; and around points on a line the camera may turn.
    """
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(camera.project(world @ R.T + t) - pixels, axis=1)
    inliers = error <= threshold  # nan, behind the camera, is not
    if not (np.isfinite(R).all() and np.isfinite(t).all()) or len(np.unique(world[inliers], axis=0)) < 4:
        return _no_pose(len(pixels), camera)
    centred = pixels[inliers] - pixels[inliers].mean(axis=0)
    across = np.linalg.svd(centred, full_matrices=False)[2][1]
    if np.abs(centred @ across).max() <= threshold:
        return _no_pose(len(pixels), camera)
    return AbsolutePose(R, t, inliers, camera)


def _no_pose(count: int, camera: Camera) -> AbsolutePose:
    return AbsolutePose(None, None, np.zeros(count, bool), camera)


def _corresponding(points: ArrayLike, points3D: ArrayLike) -> tuple[Array, Array]:
    pixels, world = np.asarray(points, np.float64), np.asarray(points3D, np.float64)
    if pixels.ndim != 2 or world.ndim != 2 or pixels.shape != (len(world), 2) or world.shape[1] != 3:
        raise ArgumentError(f"points must be (K, 2) and points3D (K, 3), not {pixels.shape} and {world.shape}")
    return pixels, world
